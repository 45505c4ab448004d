"""Content brought out to disk: whole or not at all, and nowhere else than where it belongs."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.content import extract as module
from runner.content import hamt, unixfs
from runner.content.cid import DAG_PB, Cid
from runner.content.dagpb import Link
from runner.content.extract import MAX_DIRECTORY_DEPTH, Options, extract
from runner.content.importer import import_path
from runner.content.resolver import ContentPath
from runner.errors import EXIT_CANNOT_RUN, EXIT_LIMIT, EXIT_NOT_FOUND, WwError
from tests.content.dags import MemoryStore, put_directory, put_file, put_node, put_raw


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory that holds one file already."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "before").write_text("before")
    return out


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def bring(
    store: MemoryStore, cid: Cid, destination: Path | str, *names: str, **options: Any
) -> Path:
    path = ContentPath(cid, names)
    return Path(extract(store, path, str(destination), Options(**options)))


def refusal(
    store: MemoryStore, cid: Cid, destination: Path | str, *names: str, **options: Any
) -> WwError:
    """The error; and nothing may be different after it."""
    above = Path(destination).parent
    while not above.is_dir():
        above = above.parent
    before = listing(above)
    with pytest.raises(WwError) as caught:
        bring(store, cid, destination, *names, **options)
    assert listing(above) == before
    assert str(caught.value).isprintable()
    return caught.value


def listing(path: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Everything below a directory: its inode, and its content."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for entry in path.rglob("*"):
        content: bytes | str | None = None
        if entry.is_symlink():
            content = os.readlink(entry)
        elif entry.is_file():
            content = entry.read_bytes()
        found[str(entry)] = (entry.lstat().st_ino, content)
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def put_link(store: MemoryStore, target: bytes) -> Cid:
    return put_node(store, [], unixfs.Data(unixfs.SYMLINK, data=target))


class TestPlaces:
    def test_a_file_goes_to_a_new_name(self, store: MemoryStore, out: Path) -> None:
        cid = put_raw(store, b"cell")
        assert bring(store, cid, out / "a.wasm") == out / "a.wasm"
        assert (out / "a.wasm").read_bytes() == b"cell"
        assert sorted(os.listdir(out)) == ["a.wasm", "before"]

    def test_a_file_goes_into_a_directory_under_its_own_name(
        self, store: MemoryStore, out: Path
    ) -> None:
        cid = put_raw(store, b"cell")
        root = put_directory(store, [("a.wasm", cid)])
        assert bring(store, root, out, "a.wasm") == out / "a.wasm"
        assert bring(store, cid, out) == out / str(cid)
        assert (out / "a.wasm").read_bytes() == (out / str(cid)).read_bytes() == b"cell"

    def test_the_working_directory_is_a_place_like_any_other(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cid = put_raw(store, b"cell")
        root = put_directory(store, [("a", cid)])
        monkeypatch.chdir(out)
        assert str(bring(store, root, ".", "a")) == "a"
        assert str(bring(store, cid, "b")) == "b"
        bring(store, put_directory(store, [("c", cid)]), ".")
        assert sorted(os.listdir()) == ["a", "b", "before", "c"]

    def test_directories_above_are_made_and_go_again_if_it_fails(
        self, store: MemoryStore, out: Path
    ) -> None:
        cid = put_raw(store, b"cell")
        bring(store, cid, out / "x" / "y" / "a")
        assert (out / "x" / "y" / "a").read_bytes() == b"cell"
        refusal(store, put_raw(store, b"large"), out / "x" / "z" / "v" / "a", max_size=4)

    def test_a_slash_at_the_end_asks_for_a_directory(self, store: MemoryStore, out: Path) -> None:
        cid = put_raw(store, b"cell")
        root = put_directory(store, [("a", cid)])
        assert bring(store, root, f"{out}/new/", "a") == out / "new" / "a"
        assert (out / "new" / "a").read_bytes() == b"cell"
        bring(store, root, f"{out}/other/")
        assert (out / "other" / "a").read_bytes() == b"cell"

    def test_a_directory_comes_out_as_a_new_one(self, store: MemoryStore, out: Path) -> None:
        source = out / "before"
        inner = put_directory(
            store, [("b", put_raw(store, b"b")), ("empty", put_directory(store, []))]
        )
        root = put_directory(store, [("a", put_raw(store, b"a")), ("inner", inner)])
        bring(store, root, out / "new")
        assert {p.relative_to(out / "new").as_posix() for p in (out / "new").rglob("*")} == {
            *("a", "inner", "inner/b", "inner/empty")
        }
        assert (out / "new" / "inner" / "b").read_bytes() == b"b"
        assert source.read_text() == "before"

    def test_what_is_in_a_directory_goes_into_one_that_exists(
        self, store: MemoryStore, out: Path
    ) -> None:
        inner = put_directory(store, [("b", put_raw(store, b"b"))])
        root = put_directory(store, [("a", put_raw(store, b"a")), ("inner", inner)])
        assert bring(store, root, out) == out
        assert sorted(os.listdir(out)) == ["a", "before", "inner"]
        assert (out / "inner" / "b").read_bytes() == b"b"

    def test_an_exported_tree_comes_back_the_same(
        self, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree = tmp_path / "tree"
        (tree / "a" / "b").mkdir(parents=True)
        (tree / "a" / "large").write_bytes(os.urandom(600_000))
        (tree / "a" / "b" / "é\n☃").write_text("strange name")
        (tree / "link").symlink_to("../../outside")
        for number in range(30):
            (tree / "a" / "b" / f"{number}").write_text(f"{number}")
        monkeypatch.setattr("runner.content.importer.SHARD_THRESHOLD", 500)
        cid = import_path(store, str(tree))
        back = bring(store, cid, tmp_path / "back", symlinks=True)
        contents = [
            {name.removeprefix(str(top)): found for name, (_, found) in listing(top).items()}
            for top in (tree, back)
        ]
        assert contents[0] == contents[1]
        assert len(contents[0]) == 35

    def test_a_link_to_a_directory_is_a_directory_for_whoever_named_it(
        self, store: MemoryStore, out: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to(out)
        bring(store, put_raw(store, b"cell"), tmp_path / "link" / "a")
        assert (out / "a").read_bytes() == b"cell"


class TestModes:
    def test_files_have_the_modes_of_any_new_file(self, store: MemoryStore, out: Path) -> None:
        root = put_directory(store, [("a", put_raw(store, b"a"))])
        bring(store, root, out / "new")
        assert (mode(out / "new"), mode(out / "new" / "a")) == (0o755, 0o644)
        os.umask(0o077)
        bring(store, root, out / "own")
        assert (mode(out / "own"), mode(out / "own" / "a")) == (0o700, 0o600)

    def test_executable_is_what_the_umask_allows_and_for_each_file(
        self, store: MemoryStore, out: Path
    ) -> None:
        file = put_raw(store, b"a")
        root = put_directory(store, [("a", file), ("d", put_directory(store, [("b", file)]))])
        bring(store, file, out / "x", executable=True)
        bring(store, root, out / "new", executable=True)
        for path in (out / "x", out / "new" / "a", out / "new" / "d" / "b"):
            assert mode(path) == 0o755

    def test_modes_that_the_content_claims_are_not_applied(
        self, store: MemoryStore, out: Path
    ) -> None:
        data = unixfs.Data(unixfs.FILE, data=b"sh", filesize=2, mode=0o6777)
        setuid = put_node(store, [], data)
        root = put_node(store, [Link(setuid, "a", 0)], unixfs.Data(unixfs.DIRECTORY, mode=0o7777))
        bring(store, root, out / "new", executable=True)
        assert (mode(out / "new"), mode(out / "new" / "a")) == (0o755, 0o755)


class TestNothingIsOverwritten:
    @pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling", "fifo"])
    def test_a_target_of_any_kind_stays_as_it_is(
        self, store: MemoryStore, out: Path, kind: str
    ) -> None:
        target = out / "target"
        match kind:
            case "file":
                target.write_text("mine")
            case "directory":
                target.mkdir()
            case "link":
                target.symlink_to("before")
            case "dangling":
                target.symlink_to("nowhere")
            case "fifo":
                os.mkfifo(target)
        file = put_raw(store, b"new")
        for content in (file, put_directory(store, [("x", file)]), put_link(store, b"before")):
            root = put_directory(store, [("a", file), ("target", content)])
            error = refusal(store, root, out, symlinks=True)
            assert "exists already" in error.what
            assert error.where == str(target)
            if kind != "directory":
                error = refusal(store, content, target, symlinks=True)
                assert "exists already" in error.what

    @pytest.mark.parametrize("content", ["file", "directory", "link"])
    def test_what_appears_meanwhile_stays_and_what_was_placed_is_taken_back(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch, content: str
    ) -> None:
        file = put_raw(store, b"new")
        last = {
            "file": file,
            "directory": put_directory(store, [("x", file)]),
            "link": put_link(store, b"before"),
        }[content]
        root = put_directory(
            store,
            [
                ("1", file),
                ("2", put_directory(store, [("y", file)])),
                ("3", put_link(store, b"z")),
                ("4", last),
            ],
        )
        place = module._place
        placed: list[bytes] = []

        def late(staging: int, directory: int, name: bytes, shown: str) -> None:
            if name == b"4":
                assert sorted(placed) == [b"1", b"2", b"3"]
                assert (out / "3").is_symlink()
                (out / "4").write_text("mine")
            place(staging, directory, name, shown)
            placed.append(name)

        monkeypatch.setattr(module, "_place", late)
        with pytest.raises(WwError, match="exists already"):
            bring(store, root, out, symlinks=True)
        assert sorted(os.listdir(out)) == ["4", "before"]
        assert (out / "4").read_text() == "mine"

    def test_what_others_put_in_place_of_what_was_placed_is_not_taken_back(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = put_raw(store, b"new")
        root = put_directory(store, [("1", file), ("2", file)])
        place = module._place

        def late(staging: int, directory: int, name: bytes, shown: str) -> None:
            if name == b"2":
                (out / "1").unlink()
                (out / "1").write_text("mine")
                raise WwError("here", "for the test")
            place(staging, directory, name, shown)

        monkeypatch.setattr(module, "_place", late)
        with pytest.raises(WwError, match="for the test"):
            bring(store, root, out)
        assert sorted(os.listdir(out)) == ["1", "before"]
        assert (out / "1").read_text() == "mine"

    def test_a_file_system_without_links_overwrites_nothing_either(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_links(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
        file = put_raw(store, b"new")
        link = put_link(store, b"before")
        root = put_directory(store, [("a", file), ("link", link)])
        bring(store, root, out, symlinks=True)
        assert (out / "a").read_bytes() == b"new"
        assert os.readlink(out / "link") == "before"
        assert mode(out / "a") == 0o644
        place = module._place

        def late(staging: int, directory: int, name: bytes, shown: str) -> None:
            (out / "b").write_text("mine")
            place(staging, directory, name, shown)

        monkeypatch.setattr(module, "_place", late)
        with pytest.raises(WwError, match="exists already"):
            bring(store, file, out / "b")
        assert (out / "b").read_text() == "mine"


class TestSymbolicLinks:
    def test_they_are_refused_wherever_they_are(self, store: MemoryStore, out: Path) -> None:
        link = put_link(store, b"/etc/passwd")
        inner = put_directory(store, [("link", link)])
        root = put_directory(store, [("a", put_raw(store, b"a")), ("inner", inner)])
        for cid, place in ((link, out), (link, out / "new"), (root, out), (root, out / "new")):
            error = refusal(store, cid, place)
            assert "is a symbolic link" in error.what
            assert "--symlinks" in error.hint
            assert error.code == EXIT_CANNOT_RUN

    def test_they_are_made_as_they_are_if_that_is_asked_for(
        self, store: MemoryStore, out: Path
    ) -> None:
        for number, target in enumerate((b"/etc/passwd", b"../../x", b"\xff", b"x" * 4095)):
            place = bring(store, put_link(store, target), out / f"{number}", symlinks=True)
            assert os.readlink(os.fsencode(place)) == target

    @pytest.mark.parametrize("target", [b"", b"a\0b", b"x" * 4096])
    def test_what_no_link_can_hold_is_an_error(
        self, store: MemoryStore, out: Path, target: bytes
    ) -> None:
        error = refusal(store, put_link(store, target), out / "new", symlinks=True)
        assert "a symbolic link cannot hold" in error.what

    def test_no_link_of_the_content_is_followed(self, store: MemoryStore, out: Path) -> None:
        # The attack of archives: a link, and then an entry below the link's name.
        victim = out / "victim"
        victim.mkdir()
        link = put_link(store, b"victim")
        inside = put_directory(store, [("evil", put_raw(store, b"evil"))])
        twice = put_node(
            store,
            [Link(link, "a", 0), Link(inside, "a", 0)],
            unixfs.Data(unixfs.DIRECTORY),
        )
        error = refusal(store, twice, out / "new", symlinks=True)
        assert "two entries named 'a'" in error.what
        assert os.listdir(victim) == []

    def test_no_link_that_somebody_else_puts_in_the_way_is_followed(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        victim = out / "victim"
        victim.write_text("mine")
        (out / "folder").mkdir()
        real = os.open

        def attacked(path: Any, flags: int, *arguments: Any, dir_fd: int | None = None) -> int:
            if path == b"a":
                os.symlink(victim, path, dir_fd=dir_fd)
            if path == b"b":
                os.link(victim, path, dst_dir_fd=dir_fd)
            if path == b"d":
                os.rmdir(path, dir_fd=dir_fd)
                os.symlink(out / "folder", path, dir_fd=dir_fd)
            return real(path, flags, *arguments, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", attacked)
        file = put_raw(store, b"evil")
        inside = put_directory(store, [("x", file)])
        for entry in (("a", file), ("b", file), ("d", inside)):
            refusal(store, put_directory(store, [entry]), out / "new")
        assert victim.read_text() == "mine"
        assert os.listdir(out / "folder") == []


class TestNames:
    @pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc/x", "../x", "a\0b", "x" * 256])
    def test_a_name_that_leads_elsewhere_is_refused(
        self, store: MemoryStore, out: Path, name: str
    ) -> None:
        root = put_directory(store, [("a", put_raw(store, b"a")), (name, put_raw(store, b"evil"))])
        for place in (out, out / "new"):
            refusal(store, root, place)

    def test_names_are_taken_as_bytes_whatever_is_in_them(
        self, store: MemoryStore, out: Path
    ) -> None:
        names = ["\x1b[31m", "-rf", "a\nb", "☃", "~", "$(x)", ".hidden", " "]
        root = put_directory(store, [(name, put_raw(store, b"a")) for name in names])
        bring(store, root, out / "new")
        assert set(os.listdir(out / "new")) == set(names)


class TestDamage:
    def test_a_missing_block_leaves_nothing(self, store: MemoryStore, out: Path) -> None:
        one, two = put_raw(store, b"one"), put_raw(store, b"two")
        file = put_file(store, [(one, 3), (two, 3)])
        root = put_directory(store, [("a", put_raw(store, b"a")), ("b", file)])
        del store.blocks[two.multihash]
        for cid, place in ((file, out / "new"), (root, out), (root, out / "x" / "new")):
            error = refusal(store, cid, place)
            assert error.code == EXIT_NOT_FOUND
            assert str(two) in str(error)

    def test_a_name_that_is_not_there(self, store: MemoryStore, out: Path) -> None:
        root = put_directory(store, [("a", put_raw(store, b"a"))])
        assert refusal(store, root, out, "b").code == EXIT_NOT_FOUND

    def test_a_malformed_directory(self, store: MemoryStore, out: Path) -> None:
        shard = unixfs.Data(unixfs.HAMT_SHARD, data=b"\x01", hash_type=hamt.MURMUR3_X64_64)
        root = put_node(store, [], shard)
        assert "malformed" in refusal(store, root, out).what

    def test_an_interrupt_leaves_nothing(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = put_directory(store, [("a", put_raw(store, b"a")), ("b", put_raw(store, b"b"))])
        before = listing(out)
        place = module._place
        for moment in ("before", "after"):

            def interrupted(
                staging: int, directory: int, name: bytes, shown: str, moment: str = moment
            ) -> None:
                if moment == "after":
                    place(staging, directory, name, shown)
                if name == b"b":
                    raise KeyboardInterrupt
                if moment == "before":
                    place(staging, directory, name, shown)

            monkeypatch.setattr(module, "_place", interrupted)
            with pytest.raises(KeyboardInterrupt):
                bring(store, root, out)
            assert listing(out) == before

    def test_an_interrupt_just_after_a_directory_was_made_leaves_nothing(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner = put_directory(store, [("a", put_raw(store, b"a"))])
        root = put_directory(store, [("inner", inner)])
        before = listing(out)
        made: list[str] = []

        def mkdir(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            real(path, mode, dir_fd=dir_fd)
            made.append(path)
            if len(made) == moment:
                raise KeyboardInterrupt

        real = os.mkdir
        monkeypatch.setattr(os, "mkdir", mkdir)
        # The directory above, the staging directory, what is in that, and its place at the end.
        for count in range(1, 5):
            moment = count
            made.clear()
            with pytest.raises(KeyboardInterrupt):
                bring(store, root, out / "new" / "newer", "inner")
            assert listing(out) == before

    def test_a_full_disk_leaves_nothing(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_fd: int, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        root = put_directory(store, [("a", put_raw(store, b"a"))])
        assert "No space left on device" in refusal(store, root, out / "new").what


class TestLimits:
    def test_the_sum_of_all_files(self, store: MemoryStore, out: Path) -> None:
        one = put_raw(store, b"123")
        root = put_directory(store, [("a", one), ("b", one)])
        bring(store, root, out / "fits", max_size=6)
        error = refusal(store, root, out / "new", max_size=5)
        assert error.code == EXIT_LIMIT
        assert "--max-size" in error.hint

    def test_a_file_that_claims_more_than_it_has_is_refused_before_it_is_written(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        leaf = put_raw(store, b"x")
        cid = put_file(store, [(leaf, 1 << 60)])
        opened: list[object] = []
        monkeypatch.setattr(module, "File", lambda *arguments: opened.append(arguments))
        assert refusal(store, cid, out / "new").code == EXIT_LIMIT
        assert not opened

    def test_how_many(self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_ENTRIES", 50)
        cid = put_raw(store, b"")
        for _ in range(20):  # 8 ** 20 entries in 21 blocks, and not a byte in them
            cid = put_directory(store, [(f"{number}", cid) for number in range(8)])
        error = refusal(store, cid, out / "new")
        assert error.code == EXIT_LIMIT
        assert "more than 50 files and directories" in error.what

    def test_how_many_names_at_once(
        self, store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_OPEN_NAMES", 50)
        leaf = put_raw(store, b"")
        wide = put_directory(store, [(f"{number}", leaf) for number in range(20)])
        # One after the other they may be as many as there are.
        bring(store, put_directory(store, [(f"d{n}", wide) for n in range(5)]), out / "fits")
        shutil.rmtree(out / "fits")
        deep = wide
        for _ in range(3):
            deep = put_directory(
                store, [("d", deep), *((f"{number}", leaf) for number in range(20))]
            )
        error = refusal(store, deep, out / "new")
        assert error.code == EXIT_LIMIT
        assert "more than 50 names" in error.what

    def test_how_deep(self, store: MemoryStore, out: Path) -> None:
        cid = put_directory(store, [])
        for _ in range(MAX_DIRECTORY_DEPTH - 1):
            cid = put_directory(store, [("d", cid)])
        bring(store, cid, out / "fits")
        shutil.rmtree(out / "fits")
        cid = put_directory(store, [("d", cid)])
        for place in (out / "new", out):
            error = refusal(store, cid, place)
            assert error.code == EXIT_LIMIT
            assert "directories deep" in error.what


class TestPlacesThatCannotBe:
    def test_no_directory_on_the_way(self, store: MemoryStore, out: Path) -> None:
        cid = put_raw(store, b"a")
        assert "is no directory" in refusal(store, cid, out / "before" / "x").what

    @pytest.mark.parametrize("name", ["", "x/..", "x/."])
    def test_no_name(self, store: MemoryStore, out: Path, name: str) -> None:
        cid = put_raw(store, b"a")
        with contextlib.chdir(out), pytest.raises(WwError, match="not a name"):
            bring(store, cid, name)
        assert os.listdir(out) == ["before"]

    def test_a_place_where_nothing_may_be_written(self, store: MemoryStore) -> None:
        cid = put_raw(store, b"a")
        with pytest.raises(WwError, match=r"cannot be (created|written)"):
            bring(store, cid, "/proc/ww/a")

    @pytest.mark.parametrize(
        ("target", "shown"),
        [("/ww-x", "/"), ("//ww-x", "/"), ("x", "."), ("./x", "."), ("d/x", "d")],
    )
    def test_a_directory_where_nothing_may_be_made_is_named(
        self,
        store: MemoryStore,
        out: Path,
        monkeypatch: pytest.MonkeyPatch,
        target: str,
        shown: str,
    ) -> None:
        def refuse(name: str, *args: object, **more: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        (out / "d").mkdir()
        monkeypatch.chdir(out)
        monkeypatch.setattr(os, "mkdir", refuse)
        with pytest.raises(WwError) as caught:
            bring(store, put_raw(store, b"x"), target)
        assert str(caught.value) == f"{shown}: cannot be written: Permission denied"

    def test_what_is_no_file(self, store: MemoryStore, out: Path) -> None:
        meta = put_node(store, [], unixfs.Data(unixfs.METADATA, data=b""))
        other = Cid(1, 0x71, Cid.of(b"x", codec=DAG_PB).multihash)
        for cid in (meta, other, put_directory(store, [("a", other)])):
            assert refusal(store, cid, out / "new").code == EXIT_CANNOT_RUN


def test_what_has_a_name_is_on_the_disk(
    store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub = put_directory(store, [("g", put_raw(store, b"gg"))])
    root = put_directory(store, [("f", put_raw(store, b"ff")), ("sub", sub)])
    done: list[tuple[str, str]] = []
    real_fsync, real_place = os.fsync, module._place

    def fsync(fd: int) -> None:
        real_fsync(fd)
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))

    def place(staging: int, directory: int, name: bytes, shown: str) -> None:
        real_place(staging, directory, name, shown)
        done.append(("named", os.fsdecode(name)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(module, "_place", place)
    bring(store, root, out)
    assert done == [
        *(("fsync", name) for name in ("f", "g", "sub")),
        *(("named", name) for name in ("f", "sub")),
        ("fsync", "out"),
    ]
    done.clear()
    bring(store, put_raw(store, b"x"), out / "x")
    assert done == [("fsync", "x"), ("named", "x"), ("fsync", "out")]


def test_a_disk_that_fails_at_the_end_leaves_nothing(
    store: MemoryStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put_directory(store, [("f", put_raw(store, b"ff"))])

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}") == str(out):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WwError, match="cannot be written to the disk: Input/output error"):
        bring(store, root, out)
    assert os.listdir(out) == ["before"]
