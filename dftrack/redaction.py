"""Nothing secret is recorded: credentials are taken out of every text before it is stored.

A net, not a proof: it knows credentials in URLs, the values of secret-looking environment variables of this process,
well-known token shapes, and literals assigned to secret-looking names.
"""

import functools
import os
import re
from urllib.parse import quote, quote_plus

HIDDEN = "[hidden]"

_SECRET_NAME = r"(?:api_?key|access_?key|private_?key|secret|token|passw(?:or)?d|passphrase|credentials?)"
_SECRET_VARIABLE = re.compile(
    r"(KEY|TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIALS?)(_|$|S$)|^PGPASS", re.IGNORECASE
)
_SHORTEST = 6  # characters; a shorter value ("1", "yes", "true") would blot out innocent text everywhere

# Each pattern keeps its groups "before" and "after" (where it has them) and hides what lies between. None of them
# begins with a repetition, and every repetition is bounded: no text makes them slow.
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        # scheme://user:password@host and scheme://token@host: everything before the last @ of the authority;
        # with a colon, also a password that holds / ? or # against the rules
        r"(?P<before>://)(?:[^\s/?#'\"<>]{1,999}|[^\s/:@'\"<>]{1,99}:[^\s@'\"<>]{1,999})(?P<after>@)",
        # ?access_token=... &sig=... in a query string
        r"(?i)(?P<before>[?&;][\w.-]{0,40}?(?:" + _SECRET_NAME + r"|key|auth|sig|signature|pass|pwd)=)[^&\s'\"#;]+",
        r"(?i)(?P<before>\b(?:bearer|basic)\s{1,9})[A-Za-z0-9._~+/=-]{16,}",
        # name = "literal", "name": "literal", in code, JSON, YAML or TOML
        r"(?i)(?P<before>" + _SECRET_NAME + r"[\w.-]{0,40}['\"]?\s{0,9}[:=]\s{0,9}(?P<quote>['\"]))"
        r"(?:(?!(?P=quote)).){4,4000}(?P<after>(?P=quote))",
        # NAME=value, as in a .env file or a shell line
        r"(?P<before>(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)[A-Z0-9_]{0,40}=)[^\s'\"&]{4,}",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|hf_[A-Za-z0-9]{20,})",
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"\bsk-[A-Za-z0-9_-]{20,}",
        r"\beyJ[\w-]{8,4000}\.[\w-]{8,4000}\.[\w-]{8,4000}",  # JSON web token
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    )
)


def scrub(text: str) -> str:
    """`text` with every credential that can be recognised replaced by "[hidden]"; applying it twice changes nothing."""
    values = _secret_values(tuple(sorted(os.environ.items())))
    for value in values:
        text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(_hide, text)
    return text


def _hide(match: re.Match[str]) -> str:
    parts = match.groupdict()
    return f"{parts.get('before') or ''}{HIDDEN}{parts.get('after') or ''}"


@functools.lru_cache(maxsize=4)
def _secret_values(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Values of secret-looking variables, as they are and as a URL spells them; longest first."""
    values = set()
    for name, value in environment:
        if _SECRET_VARIABLE.search(name) and len(value.strip()) >= _SHORTEST and not os.path.exists(value):
            values |= {value, value.strip(), quote(value, safe=""), quote_plus(value)}
        elif "://" in value and "@" in value:  # a URL with a password: the password alone is secret, too
            password = re.search(r"://[^\s/:@]*:([^\s/]+)@", value)
            if password and len(password[1]) >= _SHORTEST:
                values.add(password[1])
    return tuple(sorted(values, key=len, reverse=True))
