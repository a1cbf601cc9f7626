"""Patterns that find a sequence, a sub-sequence and a part in the file name of an image.

RE2 and not Python's `re`: whoever may submit jobs writes the pattern, and every worker runs it. RE2 needs a time that
is linear in the length of the name, whatever the pattern, and bounded memory; what it does not know (backreferences,
looking ahead or behind) is refused.
"""

from dataclasses import dataclass

import re2

from job_api.schemas import MAX_NAME_PATTERN_CHARS

GROUPS = ("sequence", "sub_sequence", "part")


@dataclass(frozen=True)
class NameParts:
    """What a pattern found in a name, as it stands there; None where a group has taken no part."""

    sequence: str | None = None
    sub_sequence: str | None = None
    part: str | None = None


class NamePattern:
    """A pattern that is known to be good.

    Args:
        pattern: in RE2's syntax; has at least one of the groups `GROUPS` and no other that is named.

    Raises:
        ValueError: says what is wrong with the pattern, and never repeats it.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_NAME_PATTERN_CHARS:
            raise ValueError(f"has {len(pattern)} characters; at most {MAX_NAME_PATTERN_CHARS} are allowed")
        options = re2.Options()
        options.log_errors = False
        try:
            self._regexp = re2.compile(pattern, options)
        except (re2.error, UnicodeEncodeError) as error:
            raise ValueError(
                f"is no pattern that RE2 knows: {_reason(error)} (https://github.com/google/re2/wiki/Syntax; "
                "backreferences, looking ahead and looking behind are not in it)"
            ) from None
        named = set(self._regexp.groupindex)
        if not named <= set(GROUPS) or not named:
            raise ValueError(
                f"must have at least one of the groups {', '.join(f'(?P<{name}>…)' for name in GROUPS)}, and no other "
                "that is named"
            )

    def find(self, image: str) -> NameParts:
        """What the pattern finds in the file name of an image, at its first match; nothing where it does not match.

        Args:
            image: its path; only the part behind the last slash is looked at.
        """
        match = self._regexp.search(image.rpartition("/")[2])
        # A group that matched an empty text has found nothing.
        return NameParts() if match is None else NameParts(**{k: v or None for k, v in match.groupdict().items()})


def _reason(error: Exception) -> str:
    """What RE2 says is wrong, without the piece of the pattern that it quotes."""
    said = error.args[0]
    return said.partition(b":")[0].decode(errors="replace") if isinstance(said, bytes) else "it is not UTF-8"
