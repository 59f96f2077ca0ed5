"""What starts clusters is well formed, agrees with the rest, and runs a command that there is."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from nas.commands.search import OF_RECIPE, Settings
from nas.dispatch import asked_of
from tests.fake_workers import FakeWorker

DEPLOY = Path(__file__).parent.parent / "deploy"
MANIFESTS = sorted((DEPLOY / "kuberay").glob("*.yaml"))
IMAGE = "REGISTRY/nas:" + metadata.version("nas")

# The fields of a RayJob that we use, and what they are; `None` is any object.
POD = {
    "spec": {
        "nodeSelector": None,
        "containers": [
            {
                "name": str,
                "image": str,
                "ports": [{"containerPort": int, "name": str}],
                "resources": {"limits": None, "requests": None},
                "volumeMounts": [{"mountPath": str, "name": str}],
            }
        ],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
    }
}
RAY_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "headGroupSpec": {"rayStartParams": None, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "numOfHosts": int,
                    "rayStartParams": None,
                    "template": POD,
                }
            ],
        },
    },
}


def faults(found: Any, known: Any, where: str = "") -> list[str]:
    """What in `found` is of no known name, or not what it should be."""
    if isinstance(known, list):
        if not isinstance(found, list):
            return [f"{where} is no list"]
        return [f for i, x in enumerate(found) for f in faults(x, known[0], f"{where}[{i}]")]
    if known is None or isinstance(known, dict):
        if not isinstance(found, dict):
            return [f"{where} is no object"]
        strange = [f"{where}.{name} is not known" for name in found if known and name not in known]
        inside = known or {}
        return strange + [
            f
            for name in found
            if name in inside
            for f in faults(found[name], inside[name], f"{where}.{name}")
        ]
    return [] if type(found) is known else [f"{where} is {found!r}, no {known.__name__}"]


def manifest(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods' specs, the head's first."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def command(text: str) -> list[str]:
    """The arguments of `nas search` after the recipe."""
    words = shlex.split(text)
    assert words[:2] == ["nas", "search"] and ":" in words[2], words
    return words[3:]


def parsed(arguments: list[str]) -> Settings:
    recipe = FakeWorker().recipe
    default = Settings(Path(), **{name: getattr(recipe, name) for name in OF_RECIPE})
    return tyro.cli(Settings, default=default, args=arguments)


def test_there_is_a_manifest_for_each_kind_of_host():
    assert [path.stem for path in MANIFESTS] == ["cpu", "gpu", "tpu"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_has_the_fields_of_a_ray_job(path):
    job = manifest(path)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert faults(job, RAY_JOB) == []
    assert re.fullmatch(r"[a-z0-9-]{1,47}", job["metadata"]["name"])


def test_a_field_that_is_misspelt_or_of_another_type_is_seen():
    job = manifest(MANIFESTS[0])
    job["spec"]["entryPoint"] = "nas"
    job["spec"]["backoffLimit"] = "3"
    assert faults(job, RAY_JOB) == [
        ".spec.entryPoint is not known",
        ".spec.backoffLimit is '3', no int",
    ]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_hosts_of_a_manifest_have_one_image_the_shared_folder_and_what_they_ask_for(path):
    job = manifest(path)
    for pod in pods(job):
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        assert [m["mountPath"] for m in container["volumeMounts"]] == ["/shared"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        resources = container["resources"]
        assert resources["limits"] == resources["requests"]
        assert all(isinstance(amount, str) for amount in resources["limits"].values())
    accelerators = {"cpu": set(), "gpu": {"nvidia.com/gpu"}, "tpu": {"google.com/tpu"}}
    given = pods(job)[1]["containers"][0]["resources"]["limits"].keys() - {"cpu", "memory"}
    assert given == accelerators[path.stem]
    assert ("nodeSelector" in pods(job)[1]) == (path.stem == "tpu")
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_command_of_a_manifest_is_one_that_nas_search_takes(path):
    found = parsed(command(manifest(path)["spec"]["entrypoint"]))
    assert (found.running.on, found.running.address) == ("ray", "auto")
    for folder in (found.out, found.pipeline, found.evaluator):
        assert str(folder).startswith("/shared/")


def test_versions_are_those_that_are_tested():
    ray = metadata.version("ray")
    for path in MANIFESTS:
        assert manifest(path)["spec"]["rayClusterSpec"]["rayVersion"] == ray
    assert f"FROM rayproject/ray:{ray}-py311\n" in (DEPLOY / "Dockerfile").read_text()


def test_the_image_is_made_of_files_that_are_there():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[2:-1]]
    assert {"nas", "search_spaces", "latency_models", "pyproject.toml"} <= set(copied)
    assert all((DEPLOY.parent / name).exists() for name in copied)
    (installs,) = [line for line in lines if line.startswith("RUN")]
    (extras,) = re.findall(r"\.\[([a-z,]+)\]", installs)
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    assert (
        set(extras.split(",")) <= project["optional-dependencies"].keys()
        and "-c requirements.txt" in installs
    )


def test_ray_takes_the_file_of_ray_up():
    jsonschema = pytest.importorskip("jsonschema")
    schema = metadata.distribution("ray").locate_file("ray/autoscaler/ray-schema.json")
    found = yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())
    rules = json.loads(Path(str(schema)).read_text())
    jsonschema.validate(found, rules)
    assert found["docker"]["image"] == IMAGE
    with pytest.raises(jsonschema.ValidationError, match="dokcer"):
        jsonschema.validate({**found, "dokcer": {}}, rules)


def test_the_script_for_slurm_is_one_for_bash_and_says_what_it_needs(tmp_path):
    script = DEPLOY / "search.slurm"
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    said = subprocess.run(
        ["bash", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert said.returncode and "RECIPE: the import path of a recipe" in said.stderr


def slurm(tmp_path: Path, nas: str) -> tuple[list[Any], dict[str, str], Path]:
    """The script's command and environment, and what is written of how others are called.

    There are programs in place of SLURM's, Ray's and ours, of which `nas` does as it is told.
    """
    log = tmp_path / "log"
    fakes = {
        "scontrol": "[[ $1 == requeue ]] || printf 'one\\ntwo\\nthree\\n'; "
        f'echo "scontrol $*" >> {log}',
        "hostname": "echo '10.0.0.1 fe80::1'",
        "ray": f'echo "ray $*" >> {log}',
        "nas": f'echo "nas $*" >> {log}; {nas}',
        # A step: what follows its options.
        "srun": f'echo "srun $*" >> {log}; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    given = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "RECIPE": "my_recipes:gpu",
        "OUT": "/shared/runs/1",
        "SLURM_JOB_NODELIST": "one,two,three",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_JOB_ID": "17",
    }
    return ["bash", DEPLOY / "search.slurm", "--seed", "3"], given, log


def test_the_script_for_slurm_starts_ray_on_every_host_and_the_search_once(tmp_path):
    script, given, log = slurm(tmp_path, "echo out of nas")
    subprocess.run(script, env=given, check=True, timeout=60)
    lines = log.read_text().splitlines()
    (search,) = [line for line in lines if line.startswith("nas")]
    found = parsed(command(search))
    assert (found.running.on, found.running.address, found.seed) == ("ray", "10.0.0.1:6379", 3)
    steps = [line for line in lines if line.startswith("srun")]
    assert sum("--nodelist=one" in line and "ray start --head" in line for line in steps) == 1
    (others,) = [line for line in steps if "--exclude=one" in line]
    assert "--nodes=2 --ntasks=2" in others and "10.0.0.1:6379" in others
    assert not any("requeue" in line for line in lines)


def test_the_script_for_slurm_ends_as_the_search_does(tmp_path):
    script, given, _ = slurm(tmp_path, "exit 3")
    assert subprocess.run(script, env=given, timeout=60).returncode == 3


def test_a_job_that_nears_its_time_is_queued_again_and_searches_till_it_is_ended(tmp_path):
    assert "\n#SBATCH --signal=B:USR1@120\n" in (DEPLOY / "search.slurm").read_text()
    script, given, log = slurm(
        tmp_path,
        f"for _ in {{1..600}}; do [[ -e {tmp_path / 'over'} ]] && break; sleep 0.1; done; exit 5",
    )

    def written(what: str) -> bool:
        until = time.monotonic() + 40
        while time.monotonic() < until:
            if log.exists() and what in log.read_text():
                return True
            time.sleep(0.05)
        return False

    with subprocess.Popen(script, env=given) as job:
        assert written("nas search")
        job.send_signal(signal.SIGUSR1)
        assert written("scontrol requeue 17")
        time.sleep(0.3)
        assert job.poll() is None
        (tmp_path / "over").touch()
        assert job.wait(60) == 5


KINDS = {"cpu": "CPU", "nvidia.com/gpu": "GPU", "google.com/tpu": "TPU"}
"""What Ray calls what hosts have."""


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_workers_of_the_page_s_pools_fit_the_hosts_of_their_manifest_and_not_the_head(path):
    page = (DEPLOY.parent / "docs" / "deploy.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(example, found)
    pools = found[path.stem.upper()]
    limits = pods(manifest(path))[1]["containers"][0]["resources"]["limits"]
    has = {KINDS[name]: float(n) for name, n in limits.items() if name in KINDS}
    head = manifest(path)["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # And it has no accelerators.
    for pool in (pools.scoring, pools.training, pools.measuring):
        asked = asked_of(pool)
        assert asked and all(has.get(name, 0.0) >= amount for name, amount in asked.items())
        assert pool.platform == {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}[path.stem]
