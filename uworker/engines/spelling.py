"""From the words of DECIMER's vocabulary to a SMILES, as the package spells it. Imports no TensorFlow.

In that vocabulary other characters stand for the digits after R, X, Y and Z. They are read back as digits wherever
they are, also in words that are none of those.
"""

from collections.abc import Sequence

START, END = "<start>", "<end>"

_DIGITS = str.maketrans("§!$^<>?£¢€", "0123456789")


def spell_smiles(words: Sequence[str]) -> str:
    """Return the SMILES that words say, `<start>` and `<end>` among them or not."""
    return "".join(words).replace(START, "").replace(END, "").translate(_DIGITS)


def spell_tokens(words: Sequence[str], probabilities: Sequence[float]) -> list[tuple[str, float]]:
    """Return the tokens of a SMILES, each with its probability.

    The first word and the last go, whatever they are. So an answer that was cut at the longest length and has no
    `<end>` is a token shorter here than its SMILES.

    Args:
        words: All words of an answer, from `<start>` on.
        probabilities: Of each word; that of `<start>`, which nobody chose, says nothing.

    Raises:
        ValueError: there are not as many probabilities as words.
    """
    spelt = [
        (word.translate(_DIGITS), float(probability)) for word, probability in zip(words, probabilities, strict=True)
    ]
    return spelt[1:-1]
