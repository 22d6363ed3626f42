"""Nothing secret passes, and innocent text does."""

import time

import pytest

from dftrack.redaction import HIDDEN, scrub

SECRETS = {
    "a URL with a password": ("postgresql://bob:s3cr3tpw@db.example/x", "s3cr3tpw"),
    "a URL with a password that holds a slash": ("postgresql://bob:s3c/r3t@db.example/x", "s3c/r3t"),
    "a URL with a token for a user": ("git clone https://abcd1234efgh@host.example/r.git", "abcd1234efgh"),
    "a query string": ("https://h.example/x?page=1&access_token=abc123&z=2", "abc123"),
    "a signed address": ("https://h.example/x?X-Amz-Signature=0a1b2c3d4e&z=2", "0a1b2c3d4e"),
    "a header": ("Authorization: Bearer abcdefghij0123456789", "abcdefghij0123456789"),
    "JSON": ('{"api_key": "abc-def-123"}', "abc-def-123"),
    "code": ("+password = 'correct horse battery'", "correct horse battery"),
    "a long name in code": ('db_password_for_tests: "hunter2222"', "hunter2222"),
    "a shell line": ("+export AWS_SECRET_ACCESS_KEY=abcd/efgh+ijkl", "abcd/efgh+ijkl"),
    "a GitHub token": ("see ghp_0123456789abcdefghijABCDEFGHIJ012345.", "ghp_0123456789abcdefghijABCDEFGHIJ012345"),
    "a private key": (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIabcdefgh\nxyz\n-----END RSA PRIVATE KEY-----\nafter",
        "MIIabcdefgh",
    ),
    "a key cut short": ("-----BEGIN PRIVATE KEY-----\nMIIabcdefgh", "MIIabcdefgh"),
}


@pytest.mark.parametrize("case", SECRETS)
def test_a_credential_is_hidden_and_the_rest_stays(case: str) -> None:
    text, secret = SECRETS[case]
    scrubbed = scrub(f"before {text} behind")
    assert secret not in scrubbed, f"{case} shows: {scrubbed}"
    assert scrubbed.startswith("before ") and HIDDEN in scrubbed
    assert scrub(scrubbed) == scrubbed, "a second time changes it again"


@pytest.mark.parametrize(
    "text",
    [
        "sample",
        "/data/faces/key_frames/token.jpg",
        "https://example.org/a/b?page=2&size=224#top",
        "someone@example.org wrote",
        "token = tokens[0]",
        "for key in keys: use(key)",
        "monkey=banana, turkey: 3",
        "sqlite:////store/mlflow.db",
        "val/fake/00012.jpg,12,fake,0.734",
        "@pytest.fixture\n+def f(a: int = 3) -> None:",
    ],
)
def test_innocent_text_stays_as_it_is(text: str) -> None:
    assert scrub(text) == text


def test_values_of_secret_environment_variables_are_hidden_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0a1b/2c3d 4e5f")
    monkeypatch.setenv("DB_PASSWORD", "tr0ub4dor")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:opensesame@h.example")
    text = "a tr0ub4dor b 0a1b/2c3d 4e5f c 0a1b%2F2c3d%204e5f d opensesame e"
    assert scrub(text) == f"a {HIDDEN} b {HIDDEN} c {HIDDEN} d {HIDDEN} e"


def test_values_of_other_variables_and_very_short_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "my-editor")
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("KEYBOARD", "german")
    assert scrub("my-editor true german") == "my-editor true german"


def test_megabytes_are_scrubbed_in_seconds() -> None:
    table = "\n".join(f"val/fake/img{i:06}_token-key.jpg,{i // 4},fake,0.{i:06}" for i in range(20_000))
    hostile = [
        "a",
        "token",
        "KEY",
        "://a",
        "://a:",
        "token='",
        "token: ",
        "-eyJ",
        "?a=",
        "bearer ",
        "ghp_",
        "-----BEGIN ",
    ]
    for text in (table, *(piece * (60_000 // len(piece)) for piece in hostile)):
        began = time.process_time()
        scrub(text)
        taken = time.process_time() - began
        assert taken < 5, f"{len(text)} characters like {text[:20]!r} take {taken:.1f} s"
