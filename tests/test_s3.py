"""The same on a server that speaks S3; it needs the extra `s3`."""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from nas.checkpoints import Checkpoints
from nas.journal import Journal, read
from nas.places import Remote, place
from tests.journal_writer import Step, start, until

pytest.importorskip("s3fs", reason="pip install 'nas[s3]'")
server = pytest.importorskip("moto.server", reason="pip install 'nas[s3]'")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Remote]:
    made = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "anybody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://{host}:{port}")
        import fsspec.config

        fsspec.config.set_conf_env(fsspec.config.conf)
        found = place("s3://nas-test/runs")
        assert isinstance(found, Remote)
        found._files.mkdir("nas-test")
        yield found
    made.stop()


def test_an_object_is_created_once(bucket):
    (bucket / "once").create(b"1")
    with pytest.raises(FileExistsError):
        (bucket / "once").create(b"2")
    assert (bucket / "once").read_bytes() == b"1" and bucket.exists()


def test_a_killed_writer_is_followed_on_its_machine_and_on_another(bucket):
    path = bucket / uuid.uuid4().hex
    done = 0
    for how in ((), ("elsewhere",), ()):
        with start(path, 10**6, *how) as process:
            until(process, "begun")
            until(process, str(done + 5))
            with start(path, 10**6, "elsewhere") as second:
                assert f"is writing {path}: process {process.pid} on" in until(second, "error")
            process.kill()
        done = len(read(path)[1])
    assert read(path)[1] == [(Step(n), {"square": n**2}) for n in range(done)]
    with Journal(path, {}) as journal:
        assert len(journal) == done


def test_checkpoints_are_read_to_the_bit(bucket):
    saved = Checkpoints(bucket / uuid.uuid4().hex)
    for step in (1, 2, 3):
        saved.save(step, {"a": np.arange(5.0) / 3 + step})
    assert saved.newest == 3
    found = saved.latest({"a": np.zeros(5)})
    assert found is not None and np.array_equal(found["a"], np.arange(5.0) / 3 + 3)
    assert isinstance(saved.folder, Remote)
    assert sorted(name.partition("-")[0] for name in saved.folder.names()) == [
        "2",
        "2.json",
        "3",
        "3.json",
    ]
