"""What docs/compose.md claims of docker-compose.yaml and compose/, held on the files: nothing runs here."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from embedded.keys import MADE, TRITON, composed
from embedded.ports import Ports, variable
from pipelines import case_files
from tests.compose.stackfile import COMPOSE, ROOT, SECRETS, environment, load, own_images, published, services

EXTRA = [ROOT / "compose" / name for name in ("gpu.yaml", "development.yaml")]
DOCKERFILES = sorted((ROOT / "compose" / "images").glob("*.Dockerfile"))
LONG_RUNNING = [name for name, service in services().items() if service["restart"] == "unless-stopped"]
ONE_SHOT = sorted(set(services()) - set(LONG_RUNNING))
PUBLISHED = {
    "airflow-apiserver": [8080],
    "mlflow": [5000],
    "gateway": [8090, 8091],
    "grafana": [3000],
    "prometheus": [9090],
    "alertmanager": [9093],
}
EXACT = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")
every_service = pytest.mark.parametrize("name", services())


@pytest.fixture(scope="module")
def schema():
    """The compose-spec schema that check-jsonschema carries."""
    return json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())


@pytest.mark.parametrize("path", [COMPOSE, *EXTRA], ids=lambda path: path.name)
def test_the_file_is_what_the_compose_specification_allows(path, schema):
    """Every key and type is one that the specification's schema knows, so a misspelt one cannot be ignored silently."""
    import jsonschema

    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


PROFILES = sorted({profile for service in services().values() for profile in service.get("profiles", ())})
FILES = {"alone": [COMPOSE], **{path.stem: [COMPOSE, path] for path in EXTRA}}


@pytest.mark.parametrize("profile", ["", *PROFILES, "*"])
@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_compose_takes_the_files(files, profile, tmp_path):
    """Compose itself accepts every file with every profile.

    It refuses what no schema can see, as two limits that contradict each other.
    """
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no Compose here (the plugin of docker)")
    named = [word for path in files for word in ("--file", str(path))]
    asked = ["docker", "compose", *named, *(("--profile", profile) if profile else ()), "config", "--quiet"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_has_nothing_to_say(path):
    """A Dockerfile is free of the errors and warnings that hadolint knows, without a rule being switched off."""
    hadolint = Path(sys.executable).with_name("hadolint")
    assert hadolint.exists(), f"{hadolint} is missing: run make setup"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "warning", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- images -------------------------------------------------------------------------------------


@every_service
def test_an_image_has_an_exact_tag(name):
    """No image is "latest" or a moving tag, so that two machines run the same; a digest may be put behind it."""
    assert EXACT.fullmatch(services()[name]["image"])


def test_tags_are_those_of_the_lock():
    """The Airflow image has the locked Airflow, our own images the project's version.

    Triton is one that has the security fixes.
    """
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    bases = re.findall(r"^FROM (\S+)", (ROOT / "compose/images/pipelines.Dockerfile").read_text(), re.MULTILINE)
    assert set(bases) == {f"apache/airflow:{lock['apache-airflow-core']}-python3.11"}
    for name, service in own_images().items():
        assert service["image"].endswith(f":{version}"), name
        assert f'image.version="{version}"' in (ROOT / service["build"]["dockerfile"]).read_text()
    year, month = map(int, re.search(r":(\d+)\.(\d+)-py3", services()["triton"]["image"]).groups())
    assert (year, month) >= (26, 7)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_is_multi_stage_non_root_labelled_and_checked(path):
    """What installs is left behind, what runs has a user by number, a health check, labels and exact bases."""
    text = path.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(EXACT.fullmatch(base) for base in bases)
    last = text.rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:\d+", users[-1])
    assert {f"org.opencontainers.image.{name}" for name in ("title", "description", "version", "licenses")} <= set(
        re.findall(r"[\w.]+(?==\")", last)
    )
    assert "\nHEALTHCHECK " in last
    assert "COPY --from=environment" in last
    assert "secret" not in text.lower()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_what_is_copied_from_a_closed_checkout_can_be_read(path):
    """A checkout under umask 077 lets only its owner read: what other users run or read is opened first."""
    user = "root"
    closed: list[str] = []
    for line in path.read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            user = "root"
            closed = []
        elif word == "USER":
            user = rest
        elif word == "COPY" and not rest.startswith("--"):
            closed.append(rest)
        elif word == "RUN" and "chmod -R a+rX ." in rest:
            closed = []
        assert user == "root" or word != "RUN" or not closed, (user, closed, rest)
    assert user == "root" or not closed


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_everything_copied_is_there_and_sent(path):
    """Every file that an image copies exists and passes .dockerignore; secrets, state and history pass for no image."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    for source in [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)", path.read_text(), re.MULTILINE)
        for word in line.split()[:-1]
        if word[0] != "-"
    ]:
        assert (ROOT / source).exists(), source
        assert any(source == rule or source.startswith(f"{rule}/") for rule in allowed), source
    assert not [rule for rule in allowed if rule.startswith((".git", "compose/secrets", "runs", ".env", ".venv"))]
    assert "compose" not in allowed


@pytest.mark.parametrize("name", ["gateway", "mlflow"])
def test_an_images_lock_is_a_part_of_the_lock(name):
    """A slim image installs the versions that everything is tested with, and its direct packages are all in it."""
    pinned = dict(line.split("==") for line in (ROOT / f"compose/images/{name}.lock").read_text().split())
    whole = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    assert {package: version for package, version in pinned.items() if whole.get(package) != version} == {}
    direct = {re.match(r"[\w-]+", line).group() for line in (ROOT / f"compose/images/{name}.in").read_text().split()}
    assert direct <= set(pinned)


WITHOUT = """
import importlib.metadata, re, sys
pinned = set(re.findall(r"^[\\w.-]+", open(sys.argv[1]).read(), re.MULTILINE))
owners = importlib.metadata.packages_distributions()
absent = {top for top, names in owners.items() if not {name.lower().replace("_", "-") for name in names} & pinned}

class Image:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, Image())
import serving.gateway.app, serving.gateway.triton, pipelines.ledger, psycopg, uvloop, httptools
from pipelines import text
from pipelines.cases import load_fields
from pipelines.case_files import case_names
fields = [load_fields(case) for case in case_names()]
import tokenizers
print(len(absent))
"""


def test_the_gateways_image_has_what_the_gateway_imports():
    """The gateway loads with every package hidden that is not in its image's lock, and nothing that trains is in it."""
    lock = ROOT / "compose/images/gateway.lock"
    done = subprocess.run([sys.executable, "-c", WITHOUT, lock], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
    pinned = set(re.findall(r"^[\w-]+", lock.read_text(), re.MULTILINE))
    assert not pinned & {
        "torch",
        "mlflow",
        "apache-airflow-core",
        "transformers",
        "onnxruntime",
        "pandas",
        "polars",
        "dvc",
    }


# --- hardening ----------------------------------------------------------------------------------


@every_service
def test_a_service_is_hardened(name):
    """A service has no capabilities, no new privileges, a read-only root with its scratch in memory.

    It has limits, rotated logs and a user that is not root.
    """
    service = services()[name]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    limits = service["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) > 0
    assert re.fullmatch(r"\d+[mg]", limits["memory"])
    assert limits["pids"] > 0
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}
    assert all("size=" in mount for mount in service.get("tmpfs", ()))


def test_tritons_user_and_repository():
    """Triton runs as user 1000, and answers only to who has the client's key.

    It reads the repository that only the tasks' containers (and its maker) write, and has no room for files that a
    request brings along.
    """
    triton = services()["triton"]
    assert triton["user"] == "1000:1000"
    writers = {
        name
        for name, service in services().items()
        for mount in service.get("volumes", ())
        if mount["source"] == "model_repository" and not mount.get("read_only")
    }
    assert writers == {"airflow-init", "airflow-scheduler", "airflow-worker", "airflow-worker-gpu"}
    holders = {
        secret: {name for name, service in services().items() if secret in service.get("secrets", ())}
        for secret in TRITON
    }
    assert holders.pop("triton_client") == {"gateway", *writers} - {"airflow-init"}
    assert set(map(frozenset, holders.values())) == {frozenset({"triton"})}
    # The folder itself is the first inode.
    assert [mount for mount in triton["tmpfs"] if mount.startswith("/tmp:")] == ["/tmp:nr_inodes=2,size=1m"]


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_says_whether_it_works(name):
    """Whatever runs for long has a health check with limits; a trickle of traffic has nobody to answer to."""
    check = services()[name]["healthcheck"]
    if name == "traffic":
        assert check == {"disable": True}
        return
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= set(check)


def test_services_wait_for_what_they_need():
    """Every dependency names a service and a condition that it can fulfil.

    Healthy has a check, completed is a one-shot.
    """
    assert ONE_SHOT == ["airflow-init", "seed"]
    for name, service in services().items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how["condition"] == wanted, (name, other)
            assert wanted == "service_completed_successfully" or "test" in services()[other]["healthcheck"]
            assert set(services()[other].get("profiles", [])) >= set(service.get("profiles", [])) or not services()[
                other
            ].get("profiles"), (name, other)
    assert "postgres" in services()["airflow-init"]["depends_on"]
    assert {"airflow-init"} <= set(services()["airflow-apiserver"]["depends_on"])


@every_service
def test_ports_are_published_on_the_loopback_address_only(name):
    """What is published is reachable from this machine alone, on the port that the documentation says.

    It needs a network that is no internal one.
    """
    found = published(name)
    assert found == [("127.0.0.1", port, port) for port in PUBLISHED.get(name, ())]
    assert not found or {"front", "out"} & set(services()[name]["networks"])


def test_published_ports_move_with_the_variables_of_make_up():
    """The ports' variables and defaults are those of the embedded stack.

    So both can be told apart in the same way.
    """
    text = COMPOSE.read_text()
    ports = Ports()
    of = {"airflow": "airflow-apiserver", "mlflow": "mlflow", "gateway": "gateway", "gateway_grpc": "gateway"}
    for name, service in of.items():
        assert f"${{{variable(name)}:-{getattr(ports, name)}}}:" in text
        assert getattr(ports, name) in PUBLISHED[service]


def test_networks_keep_apart_what_need_not_meet():
    """Databases have no way out, nobody but their users enters; what is published cannot reach the world.

    Triton and the exporters are not published.
    """
    networks = load()["networks"]
    unmasked = {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}}
    assert networks == {"data": {"internal": True}, "serve": {"internal": True}, "front": unmasked, "out": {}}
    on = {net: {name for name, service in services().items() if net in service["networks"]} for net in networks}
    assert services()["postgres"]["networks"] == services()["redis"]["networks"] == ["data"]
    assert services()["triton"]["networks"] == ["serve"]
    assert not on["data"] & {"triton", "prometheus", "alertmanager", "grafana", "traffic", "airflow-metrics"}
    assert on["front"] == set(PUBLISHED) - {"alertmanager"}
    assert not on["front"] & on["out"], "the engine would take one of the two as the way to the world, by its name"
    assert on["out"] == {
        "airflow-scheduler",
        "airflow-triggerer",
        "airflow-dag-processor",
        "airflow-worker",
        "airflow-worker-gpu",
        "alertmanager",
    }


# --- secrets ------------------------------------------------------------------------------------


def test_every_secret_is_a_file_that_make_secrets_makes():
    """Secrets are files in one git-ignored folder, all made by `make secrets`, each used, none declared in vain."""
    declared = load()["secrets"]
    assert {name: {"file": f"./compose/secrets/{name}"} for name in declared} == declared
    made = {*MADE, *TRITON, *composed(dict.fromkeys(MADE, "x"))}
    assert set(declared) <= made
    used = {secret for service in services().values() for secret in service.get("secrets", ())}
    assert used == set(declared)
    ignored = subprocess.run(
        ["git", "check-ignore", "compose/secrets/x", ".env"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.split()
    assert ignored == ["compose/secrets/x", ".env"]


@every_service
def test_a_secret_that_is_named_is_given(name):
    """Every path below /run/secrets that a service's settings, command or scripts name is a secret that it is given.

    And the other way round.
    """
    service = services()[name]
    scripts = [
        ROOT / mount["source"]
        for mount in service.get("volumes", ())
        if mount["type"] == "bind" and (ROOT / mount["source"]).is_file()
    ]
    if name == "airflow-apiserver":
        scripts.append(ROOT / "compose/airflow/api-server.sh")
    said = json.dumps([service.get("environment"), service.get("command"), service.get("healthcheck")]) + "".join(
        path.read_text() for path in scripts
    )
    named = set(re.findall(rf"{SECRETS}(\w+)", said)) | set(
        re.findall(r"(?:\$\{SECRETS:-/run/secrets\}|\$secrets)/(\w+)", said)
    )
    named |= {
        f"{database}_db_password" for database in ("airflow", "mlflow", "ledger") if "${name}_db_password" in said
    }
    given = set(service.get("secrets", ()))
    assert named <= given
    # The webhook is there for whoever sets ALERT_ROUTE and ALERT_WEBHOOK_FILE.
    assert given - named <= {"alert_webhook"}


@every_service
def test_no_setting_holds_a_secret(name):
    """Nothing that sounds like a secret has a value in the file.

    It comes from a file, a command that reads one, or not at all.
    """
    for setting, value in environment(name).items():
        if re.search(r"PASSWORD|SECRET|KEY|TOKEN|_CONN|BROKER|BACKEND", setting) and not setting.endswith(
            ("_FILE", "_CMD")
        ):
            assert setting == "TOKENIZERS_PARALLELISM", setting
        if setting.endswith("_CMD"):
            assert re.fullmatch(rf"cat {SECRETS}\w+", value)
    assert not re.search(r"://[^/\s\"]+:[^/\s\"]+@", json.dumps(services()[name]))


def test_no_variable_is_a_secret():
    """What may be set from outside are ports, profiles, routes, names of hosts and the folder of cases.

    None of them is a key or a password.
    """
    names = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    ports = ("AIRFLOW", "MLFLOW", "GATEWAY", "GATEWAY_GRPC", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")
    assert names == {f"PERENNIAL_PORT_{name}" for name in ports} | {
        "PERENNIAL_ALLOWED_HOSTS",
        "PERENNIAL_CASES",
        "AIRFLOW_EXECUTOR",
        "ALERT_ROUTE",
        "ALERT_WEBHOOK_FILE",
        "TORCH_INDEX",
        "TORCH_INDEX_GPU",
        "PIP_INDEX_URL",
        "PERENNIAL_CPUS",
        "PERENNIAL_CPUS_GPU",
    }


# --- mounts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [COMPOSE, *EXTRA], ids=lambda path: path.name)
def test_what_is_mounted_is_there(path):
    """A file that is bound into a container exists in the checkout and is read-only there."""
    for name, service in load(path)["services"].items():
        for mount in service.get("volumes", ()):
            if mount["type"] == "bind":
                assert (ROOT / mount["source"]).exists(), (name, mount["source"])
                assert mount["read_only"] is True
            else:
                assert mount["source"] in load()["volumes"]


def test_cases_outside_of_the_images_are_seen_by_all_who_read_cases():
    """Whatever runs our code has one folder of cases, read-only; a folder that is not there is never made.

    The variable names another than the checkout's own, of which git keeps a README alone.
    """
    ours = {name for name, service in services().items() if "PERENNIAL_HOME" in service.get("environment", {})}
    built = {service["image"] for name, service in own_images().items() if name != "mlflow"}
    assert ours == {name for name, service in services().items() if service["image"] in built}
    inside = "/opt/perennial/cases"
    wanted = {"type": "bind", "target": inside, "read_only": True, "bind": {"create_host_path": False}}
    for given, source in (((), "./compose/cases"), ((("PERENNIAL_CASES", "/srv/teams/cases"),), "/srv/teams/cases")):
        found = load(given=given)["services"]
        mounted = {name: m for name in found for m in found[name].get("volumes", ()) if m["target"] == inside}
        assert mounted == {name: {**wanted, "source": source} for name in ours}
        assert {name for name in found if found[name].get("environment", {}).get(case_files.FOLDERS) == inside} == ours
    kept = subprocess.run(["git", "ls-files", "compose/cases"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert kept.stdout.split() == ["compose/cases/README.md"]
    ignored = ["git", "check-ignore", "--quiet", "compose/cases/churn/schema.py"]
    assert subprocess.run(ignored, check=False, cwd=ROOT).returncode == 0


def test_a_volume_takes_its_owner_from_one_service():
    """Exactly one user's image fills a new volume.

    Everybody else mounts it as it is, so the order of starting decides nothing.
    """
    for volume in load()["volumes"]:
        owners = {
            service["user"]
            for service in services().values()
            for mount in service.get("volumes", ())
            if mount["source"] == volume and not mount.get("volume", {}).get("nocopy")
        }
        assert len(owners) == 1, volume


def test_scripts_can_be_run():
    """Scripts are executable, parse, and stop at the first error."""
    for path in (ROOT / "compose").glob("*/*.sh"):
        assert path.stat().st_mode & 0o111
        shell = path.read_text().splitlines()[0].removeprefix("#!")
        assert subprocess.run([shell, "-n", path], check=False).returncode == 0
        assert re.search(r"^set -eu", path.read_text(), re.MULTILINE)
