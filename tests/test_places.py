import threading
import uuid
from pathlib import Path

import fsspec
import pytest

from nas import places
from nas.places import Remote, place, write_whole


@pytest.fixture(params=["memory", "file"])
def folder(request, tmp_path):
    under = tmp_path if request.param == "file" else uuid.uuid4().hex
    found = place(f"{request.param}://{under}/run")
    yield found
    found.remove()  # pyright: ignore


def test_a_path_is_a_path_and_a_url_is_remote():
    assert place("runs/1") == Path("runs/1")
    assert place("memory://runs/1/") == Remote("memory://runs/1")
    assert str(place("memory://runs/1") / "a") == "memory://runs/1/a"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://a/b", "nowhere://a/b: fsspec knows no filesystem nowhere://"),
        ("s3:///", "names no folder"),
        ("simplecache::memory://a", "is a chain of filesystems"),
        ("ftp://host/run", "cannot create an object only where there is none"),
        ("github://org:repo@main/run", "cannot create an object only where there is none"),
    ],
)
def test_a_url_that_cannot_hold_a_search_is_an_error_that_says_why(url, message):
    with pytest.raises(ValueError, match=message):
        place(url)


def test_a_filesystem_whose_package_is_missing_says_what_to_install(monkeypatch):
    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ValueError, match=r"Install s3fs.*pip install 'nas\[storage\]'"):
        place("s3://bucket/run")


def test_what_is_written_is_read_listed_and_deleted(folder):
    assert folder.names() == [] and not folder.exists()
    (folder / "a").write_bytes(b"1")
    (folder / "a").write_bytes(b"22")
    (folder / "b").create(b"3")
    ((folder / "deep") / "c").create(b"4")
    assert folder.names() == ["a", "b", "deep"] and folder.exists()
    assert list(folder.read_all(["b", "a"])) == [b"3", b"22"]
    (folder / "a").unlink()
    (folder / "a").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "a").read_bytes()
    folder.remove()
    assert folder.names() == []


def test_many_objects_are_read_in_their_order(folder, monkeypatch):
    monkeypatch.setattr(places, "_AT_ONCE", 3)
    names = [f"{number}" for number in range(10)]
    for name in names:
        (folder / name).write_bytes(name.encode())
    assert list(folder.read_all(names)) == [name.encode() for name in names]


def test_what_is_there_is_not_created_again(folder):
    (folder / "a").create(b"1")
    with pytest.raises(FileExistsError):
        (folder / "a").create(b"2")
    assert (folder / "a").read_bytes() == b"1"


def test_of_many_who_create_a_file_one_does(tmp_path):
    target, made = place(f"file://{tmp_path}/a"), []
    assert isinstance(target, Remote)

    def create(number: int) -> None:
        try:
            target.create(b"%d" % number)
            made.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [target.read_bytes()] == [b"%d" % number for number in made]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folders_go_up_and_come_down_as_they_were(folder, tmp_path):
    files = {"a": b"1", "deep/b": b"", "deep/er/c": bytes(range(256))}
    for name, content in files.items():
        write_whole(tmp_path / "here" / name, content)
    folder.upload(tmp_path / "here", list(files))
    folder.download(tmp_path / "there", list(files))
    assert {name: (tmp_path / "there" / name).read_bytes() for name in files} == files


def test_a_local_file_is_replaced_as_a_whole(tmp_path):
    write_whole(tmp_path / "a", b"1")
    write_whole(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2" and len(list(tmp_path.iterdir())) == 1
