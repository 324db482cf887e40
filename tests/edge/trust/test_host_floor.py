"""What `edge pull --key` accepts after what it has accepted: numbers grow, and expiry counts."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from boardfit.edge.errors import IntegrityError
from boardfit.edge.trust.board_rules import Subject
from boardfit.edge.trust.host_floor import accept_pulled, floor_file, refuse_pulled
from boardfit.edge.trust.release import ReleaseTerms
from boardfit.edge.trust.ssh_formats import PublicKey

ONE, TWO = PublicKey(bytes([1]) * 32, "one"), PublicKey(bytes([2]) * 32, "two")


def release(number: int, name: str = "x", expires_at: datetime | None = None) -> Subject:
    return Subject("ab" * 32, name, "a-board", ReleaseTerms(number, None, expires_at))


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def test_the_number_of_a_name_and_signer_never_falls() -> None:
    refuse_pulled(release(5), ONE, allow_older=False)
    accept_pulled(release(5), ONE)
    assert floor_file(ONE).stat().st_mode & 0o777 == 0o600
    for number in (5, 6):
        refuse_pulled(release(number), ONE, allow_older=False)
    with pytest.raises(IntegrityError, match="release 4 of x is older than 5") as caught:
        refuse_pulled(release(4), ONE, allow_older=False)
    assert "--allow-older" in str(caught.value.next_step)
    refuse_pulled(release(4, "y"), ONE, allow_older=False)
    refuse_pulled(release(4), TWO, allow_older=False)


def test_an_older_release_on_purpose_lowers_the_floor() -> None:
    accept_pulled(release(5), ONE)
    refuse_pulled(release(4), ONE, allow_older=True)
    accept_pulled(release(4), ONE)
    refuse_pulled(release(4), ONE, allow_older=False)
    with pytest.raises(IntegrityError):
        refuse_pulled(release(3), ONE, allow_older=False)


def test_an_expired_release_is_refused_even_so() -> None:
    past = datetime.now(timezone.utc) - timedelta(days=1)
    with pytest.raises(IntegrityError, match="expired at"):
        refuse_pulled(release(9, expires_at=past), ONE, allow_older=True)


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 9999, b"\xff"])
def test_a_damaged_record_accepts_nothing(data: bytes) -> None:
    accept_pulled(release(5), ONE)
    floor_file(ONE).write_bytes(data)
    with pytest.raises(IntegrityError, match="cannot be used"):
        refuse_pulled(release(9), ONE, allow_older=True)


def test_a_link_in_the_records_place_to_nowhere_accepts_nothing(tmp_path: Path) -> None:
    floor_file(ONE).parent.mkdir(parents=True)
    floor_file(ONE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(IntegrityError, match="cannot be used"):
        refuse_pulled(release(9), ONE, allow_older=False)
