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

from embedded.keys import AIRFLOW_USERS, MADE, MLFLOW_USER, composed
from embedded.ports import Ports, variable
from pipelines.config import Settings
from serving.gateway.settings import Bounds
from tests.compose.stackfile import COMPOSE, ROOT, SECRETS, environment, load, own_images, published, services

EXTRA = [ROOT / "compose" / name for name in ("gpu.yaml", "development.yaml")]
DOCKERFILES = sorted((ROOT / "compose" / "images").glob("*.Dockerfile"))
LONG_RUNNING = [name for name, service in services().items() if service["restart"] == "unless-stopped"]
ONE_SHOT = sorted(set(services()) - set(LONG_RUNNING))
AIRFLOW = [name for name, service in services().items() if "AIRFLOW__CORE__EXECUTOR" in service.get("environment", {})]
PUBLISHED = {"airflow-apiserver": 8080, "mlflow": 5000, "gateway": 8090, "grafana": 3000, "prometheus": 9090, "alertmanager": 9093}
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


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_has_nothing_to_say(path):
    """A Dockerfile is free of the errors and warnings that hadolint knows, without a rule being switched off."""
    hadolint = Path(sys.executable).with_name("hadolint")
    assert hadolint.exists(), f"{hadolint} is missing: run make setup"
    done = subprocess.run([hadolint, "--failure-threshold", "warning", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- images -------------------------------------------------------------------------------------


@every_service
def test_an_image_has_an_exact_tag(name):
    """No image is "latest" or a moving tag, so that two machines run the same; a digest may be put behind it."""
    assert EXACT.fullmatch(services()[name]["image"])


def test_tags_are_those_of_the_lock():
    """The Airflow image has the locked Airflow, our own images the project's version, Triton is one that has the security fixes."""
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
    assert {f"org.opencontainers.image.{name}" for name in ("title", "description", "version", "licenses")} <= set(re.findall(r"[\w.]+(?==\")", last))
    assert "\nHEALTHCHECK " in last
    assert "COPY --from=environment" in last
    assert "secret" not in text.lower()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_everything_copied_is_there_and_sent(path):
    """Every file that an image copies exists and passes .dockerignore; secrets, state and history pass for no image."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    for source in [word for line in re.findall(r"^COPY (?!--from)(.+)", path.read_text(), re.MULTILINE) for word in line.split()[:-1] if word[0] != "-"]:
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
from pipelines.config import case_names
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
    assert not pinned & {"torch", "mlflow", "apache-airflow-core", "transformers", "onnxruntime", "pandas", "polars", "dvc"}


# --- hardening ----------------------------------------------------------------------------------


@every_service
def test_a_service_is_hardened(name):
    """No capabilities, no new privileges, a read-only root with its scratch in memory, limits, rotated logs, a user that is not root."""
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
    assert service["pids_limit"] > 0
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}
    assert all("size=" in mount for mount in service.get("tmpfs", ()))


def test_tritons_user_and_repository():
    """Triton runs as user 1000, reads the repository that only the tasks' containers (and its maker) write, and takes admin calls by key only."""
    triton = services()["triton"]
    assert triton["user"] == "1000:1000"
    writers = {
        name
        for name, service in services().items()
        for mount in service.get("volumes", ())
        if mount["source"] == "model_repository" and not mount.get("read_only")
    }
    assert writers == {"airflow-init", "airflow-scheduler", "airflow-worker", "airflow-worker-gpu"}
    assert {name for name, service in services().items() if "triton_admin_key" in service.get("secrets", ())} == {"triton", *writers} - {"airflow-init"}


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
    """Every dependency names a service and a condition that it can fulfil: healthy has a check, completed is a one-shot."""
    assert ONE_SHOT == ["airflow-init", "seed"]
    for name, service in services().items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how["condition"] == wanted, (name, other)
            assert wanted == "service_completed_successfully" or "test" in services()[other]["healthcheck"]
            assert set(services()[other].get("profiles", [])) >= set(service.get("profiles", [])) or not services()[other].get("profiles"), (name, other)
    assert "postgres" in services()["airflow-init"]["depends_on"]
    assert {"airflow-init"} <= set(services()["airflow-apiserver"]["depends_on"])


@every_service
def test_ports_are_published_on_the_loopback_address_only(name):
    """What is published is reachable from this machine alone, on the port that the documentation says, and needs the edge network."""
    found = published(name)
    assert found == ([("127.0.0.1", PUBLISHED[name], PUBLISHED[name])] if name in PUBLISHED else [])
    assert not found or "edge" in services()[name]["networks"]


def test_published_ports_move_with_the_variables_of_make_up():
    """The ports' variables and defaults are those of the embedded stack, so that both can be told apart in the same way."""
    text, ports = COMPOSE.read_text(), Ports()
    for name, service in (("airflow", "airflow-apiserver"), ("mlflow", "mlflow"), ("gateway", "gateway")):
        assert f"${{{variable(name)}:-{getattr(ports, name)}}}:" in text
        assert PUBLISHED[service] == getattr(ports, name)


def test_networks_keep_apart_what_need_not_meet():
    """Databases have no way out, nobody but their users enters; Triton and the exporters are not published."""
    networks = load()["networks"]
    assert networks == {"data": {"internal": True}, "serve": {"internal": True}, "edge": {}}
    on = {net: {name for name, service in services().items() if net in service["networks"]} for net in networks}
    assert services()["postgres"]["networks"] == services()["redis"]["networks"] == ["data"]
    assert services()["triton"]["networks"] == ["serve"]
    assert not on["data"] & {"triton", "prometheus", "alertmanager", "grafana", "traffic", "airflow-metrics"}
    assert on["edge"] == {*PUBLISHED, "airflow-scheduler", "airflow-worker", "airflow-worker-gpu"}


# --- secrets ------------------------------------------------------------------------------------


def test_every_secret_is_a_file_that_make_secrets_makes():
    """Secrets are files in one git-ignored folder, all of them made by `make secrets`, each used, none declared in vain."""
    declared = load()["secrets"]
    assert {name: {"file": f"./compose/secrets/{name}"} for name in declared} == declared
    made = {*MADE, *composed(dict.fromkeys(MADE, "x"))}
    assert set(declared) <= made
    used = {secret for service in services().values() for secret in service.get("secrets", ())}
    assert used == set(declared)
    ignored = subprocess.run(["git", "check-ignore", "compose/secrets/x", ".env"], capture_output=True, text=True, check=False, cwd=ROOT).stdout.split()
    assert ignored == ["compose/secrets/x", ".env"]


@every_service
def test_a_secret_that_is_named_is_given(name):
    """Every path below /run/secrets that a service's settings, command or scripts name is a secret that it is given, and the other way round."""
    service = services()[name]
    scripts = [ROOT / mount["source"] for mount in service.get("volumes", ()) if mount["type"] == "bind" and (ROOT / mount["source"]).is_file()]
    if name == "airflow-apiserver":
        scripts.append(ROOT / "compose/airflow/api-server.sh")
    said = json.dumps([service.get("environment"), service.get("command"), service.get("healthcheck")]) + "".join(path.read_text() for path in scripts)
    named = set(re.findall(rf"{SECRETS}(\w+)", said)) | set(re.findall(r"(?:\$\{SECRETS:-/run/secrets\}|\$secrets)/(\w+)", said))
    named |= {f"{database}_db_password" for database in ("airflow", "mlflow", "ledger") if "${name}_db_password" in said}
    given = set(service.get("secrets", ()))
    assert named <= given
    # The webhook is there for whoever sets ALERT_ROUTE and ALERT_WEBHOOK_FILE.
    assert given - named <= {"alert_webhook"}


@every_service
def test_no_setting_holds_a_secret(name):
    """Nothing that sounds like a secret has a value in the file: it comes from a file, a command that reads one, or not at all."""
    for setting, value in environment(name).items():
        if re.search(r"PASSWORD|SECRET|KEY|TOKEN|_CONN|BROKER|BACKEND", setting) and not setting.endswith(("_FILE", "_CMD")):
            assert setting == "TOKENIZERS_PARALLELISM", setting
        if setting.endswith("_CMD"):
            assert re.fullmatch(rf"cat {SECRETS}\w+", value)
    assert not re.search(r"://[^/\s\"]+:[^/\s\"]+@", json.dumps(services()[name]))


def test_no_variable_is_a_secret():
    """What may be set from outside are ports, profiles and routes; none of them is a key or a password."""
    names = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    assert names == {*(f"PERENNIAL_PORT_{n}" for n in ("AIRFLOW", "MLFLOW", "GATEWAY", "PROMETHEUS", "ALERTMANAGER", "GRAFANA"))} | {
        "AIRFLOW_EXECUTOR",
        "ALERT_ROUTE",
        "ALERT_WEBHOOK_FILE",
        "TORCH_INDEX_GPU",
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


def test_a_volume_takes_its_owner_from_one_service():
    """Exactly one user's image fills a new volume; everybody else mounts it as it is, so the order of starting decides nothing."""
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


# --- settings -----------------------------------------------------------------------------------


@every_service
def test_our_settings_are_known(name):
    """Every PERENNIAL_* variable is a field of Settings or of the gateway's bounds, or a file that holds one; a typo would be ignored silently."""
    fields = {f"PERENNIAL_{field.upper()}" for field in Settings.model_fields}
    fields |= {f"{field}_FILE" for field in fields} | {f"PERENNIAL_GATEWAY_{field.upper()}" for field in Bounds.model_fields} | {"PERENNIAL_PRELOAD"}
    assert {setting for setting in environment(name) if setting.startswith("PERENNIAL_")} <= fields


def test_our_settings_point_at_services():
    """Every address in our settings is a service's name and a port that it listens on, on a network that both are on."""
    ports = {"mlflow": {5000}, "airflow-apiserver": {8080}, "gateway": {8090}, "triton": {8000, 8001, 8002}}
    for name in services():
        for setting, value in environment(name).items():
            if setting.startswith("PERENNIAL_") and (found := re.fullmatch(r"(?:http://)?([a-z-]+):(\d+)", value)):
                assert int(found[2]) in ports[found[1]], (name, setting)
    for client, server in [("airflow-scheduler", "triton"), ("airflow-worker", "triton"), ("gateway", "triton"), ("airflow-scheduler", "mlflow")]:
        assert set(services()[client]["networks"]) & set(services()[server]["networks"])


def test_airflows_settings_are_known():
    """Every AIRFLOW__* variable names an option of `airflow config list`, and one from a command is an option that may come from one."""
    from airflow.configuration import conf

    sensitive = conf.sensitive_config_values
    for setting in {setting for name in AIRFLOW for setting in environment(name) if setting.startswith("AIRFLOW__")}:
        section, option = setting.removeprefix("AIRFLOW__").lower().split("__")
        option = option.removesuffix("_cmd")
        assert option in conf.configuration_description[section]["options"], setting
        assert not setting.endswith("_CMD") or (section, option) in sensitive, setting


DIFFERENT = {
    "AIRFLOW__API__HOST": "a container listens on its own address; what is published is on 127.0.0.1",
    "AIRFLOW__CORE__DAGS_FOLDER": "a path in the image",
    "AIRFLOW__CORE__PLUGINS_FOLDER": "a path in the image",
    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "a service's name",
    "AIRFLOW__CORE__FERNET_KEY": "from a file",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "only where nobody else reaches the address",
    "AIRFLOW__API__SECRET_KEY": "from a file",
    "AIRFLOW__API_AUTH__JWT_SECRET": "from a file",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "from a file",
    "AIRFLOW__LOGGING__BASE_LOG_FOLDER": "a volume",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "costs a fifth of a core when idle: for demos only",
    "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": "no log servers: api-server and tasks share a volume",
    "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": "the same",
}
"""Airflow's settings in which compose differs from `make up`, and why."""


def test_airflow_is_set_as_in_make_up(tmp_path):
    """Both stacks give Airflow the same settings, but for those whose reason stands in DIFFERENT; all-admins is off here."""
    from embedded.services import full_environment

    here = environment("airflow-scheduler")
    there = {name: value for name, value in full_environment(tmp_path, Ports()).items() if name.startswith("AIRFLOW__")}
    assert {name for name, value in there.items() if here.get(name) != value} == set(DIFFERENT)
    assert here["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"


def test_logins_are_those_that_are_made():
    """Airflow's users and MLflow's are those for which `make secrets` makes passwords, with a reader for the exporter."""
    users = dict(user.split(":") for user in environment("airflow-apiserver")["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"].split(","))
    assert users == AIRFLOW_USERS
    assert environment("airflow-scheduler")["PERENNIAL_MLFLOW_USERNAME"] == MLFLOW_USER
    assert AIRFLOW_USERS[environment("airflow-metrics")["PERENNIAL_AIRFLOW_USERNAME"]] == "viewer"


def test_executors_and_queues():
    """Without profiles nothing needs Redis; with them a worker serves each queue, and the GPU is asked for where it is used."""
    assert environment("airflow-scheduler")["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert {name: service["profiles"] for name, service in services().items() if "profiles" in service} == {
        "redis": ["celery", "gpu"],
        "airflow-worker": ["celery", "gpu"],
        "airflow-worker-gpu": ["gpu"],
        "traffic": ["traffic"],
    }
    queues = {
        name: service["command"][service["command"].index("--queues") + 1] for name, service in services().items() if "--queues" in service.get("command", ())
    }
    assert queues == {"airflow-worker": "default", "airflow-worker-gpu": "gpu"}
    assert environment("airflow-scheduler")["AIRFLOW__OPERATORS__DEFAULT_QUEUE"] == "default"
    for found in (services()["airflow-worker-gpu"], load(ROOT / "compose/gpu.yaml")["services"]["triton"]):
        assert found["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "AIRFLOW_EXECUTOR=LocalExecutor docker compose --file docker-compose.yaml up"),
        (("PROFILES=celery,traffic",), "AIRFLOW_EXECUTOR=CeleryExecutor docker compose --file docker-compose.yaml --profile celery --profile traffic up"),
        (
            ("PROFILES=gpu", "DEV=1"),
            "AIRFLOW_EXECUTOR=CeleryExecutor docker compose --file docker-compose.yaml --file compose/gpu.yaml --file compose/development.yaml --profile gpu up",
        ),
    ],
)
def test_make_compose_up_takes_profiles(asked, said):
    """`make compose-up` makes the secrets first, and gives workers the executor that sends them tasks."""
    lines = subprocess.run(["make", "-n", "compose-up", *asked], capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert "python3 -m embedded.keys" in lines
    assert " ".join(lines[-1].split()).startswith(said)


def test_modules_that_are_started_are_there():
    """Every `python -m` of a service is a module of this repository, and its options are ones that it takes."""
    for name, service in services().items():
        command = service.get("command", [])
        if command[:2] == ["python", "-m"]:
            module = ROOT.joinpath(*command[2].split("."))
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), name
    from pipelines.cli import build_parser

    given = build_parser().parse_args(services()["loop-metrics"]["command"][3:])
    assert (given.command, given.host, given.port) == ("metrics", "0.0.0.0", 9109)


def test_mlflow_answers_to_its_own_names_only():
    """MLflow is behind a login, proxies artefacts, and lists the hosts it may be called by: the service and the loopback address."""
    hosts = environment("mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {host.partition(":")[0] for host in hosts} == {"mlflow", "127.0.0.1", "localhost"}
    script = (ROOT / "compose/mlflow/start.sh").read_text()
    assert "--app-name basic-auth" in script
    assert "--serve-artifacts" in script
    assert "--backend-store-uri" not in script


def test_the_gateway_has_two_workers_that_count_together():
    """Two workers share a folder for their metrics, so that Prometheus hears the same from either."""
    text = (ROOT / "compose/images/gateway.Dockerfile").read_text()
    assert '"--workers=2"' in text
    assert environment("gateway")["PROMETHEUS_MULTIPROC_DIR"].startswith("/tmp/")
    assert "command" not in services()["gateway"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; test_monitoring.py holds the same without it")
def test_promtool_takes_configuration_and_rules(tmp_path):
    """Prometheus' own checker accepts its configuration and all rules."""
    shutil.copy(ROOT / "compose/prometheus/prometheus.yaml", tmp_path)
    (tmp_path / "rules").mkdir()
    for path in (ROOT / "compose/prometheus/stack.rules.yaml", ROOT / "pipelines/alerts/prometheus.rules.yaml"):
        shutil.copy(path, tmp_path / "rules")
    done = subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
