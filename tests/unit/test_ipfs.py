"""What `--with-ipfs` answers a cell, where a whole run would take too much content."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from runner.cells import FetchOptions
from runner.content.blockstore import Blockstore
from runner.ipfs import Ipfs
from tests.content.dags import block_files, put_raw


def test_a_cell_cannot_have_the_store_filled_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.content.fetch._CAR_OVERHEAD", 0)
    size = 1600  # with its sixteenth: 1700
    with Blockstore(str(tmp_path / "repo")) as repository:
        cids = [put_raw(repository, bytes([number]) * 500) for number in range(5)]
    told: list[str] = []
    environ = {"WW_HOME": str(tmp_path / "store"), "WW_IPFS": str(tmp_path / "repo")}
    ipfs = Ipfs(environ, told.append, FetchOptions(max_size=size))
    for cid in cids[:3]:
        assert b"".join(ipfs.read(str(cid))) == Blockstore(str(tmp_path / "repo")).get(cid)
    for _ in range(2):
        with pytest.raises(OSError, match="Disk quota exceeded") as caught:
            ipfs.find("", f"/{cids[3]}", follow=True)
        assert caught.value.errno == errno.EDQUOT
    # What the store has is not counted.
    assert b"".join(ipfs.read(str(cids[0])))
    assert len(block_files(tmp_path / "store")) == 3
    assert len(told) == 1
    assert str(cids[3]) in told[0]
    assert "1700 bytes" in told[0]
    assert "--max-size" in told[0]
    ipfs._store().close()
