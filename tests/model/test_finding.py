from __future__ import annotations

from qmpsnap.model.finding import Finding


def test_a_finding_is_json() -> None:
    found = Finding("io-error", "trouble", "vda", "it failed", ("qmpsnap", "cont"))
    assert found.is_trouble
    assert not Finding("no-internal", "limit", "vda", "it is raw").is_trouble
    assert found.to_json() == {
        "code": "io-error",
        "severity": "trouble",
        "subject": "vda",
        "cause": "it failed",
        "remedy": ("qmpsnap", "cont"),
        "advice": "",
    }
