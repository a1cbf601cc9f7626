"""The HTTP endpoints: each parses, calls one function of the domain, and answers. No SQL and no state live here."""
