"""What stands in docker/ and docs/ fits the repository: files, options, labels."""

import fnmatch
import itertools
import json
import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import click
import pytest
import yaml

from pipelines.cli import main

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*Dockerfile"))
PAGES = [*sorted((ROOT / "docs").iterdir()), ROOT / "docker/README.md"]


def instructions(dockerfile):
    """(keyword, rest), without comments, continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def is_left_out(path):
    """By .dockerignore: the last rule that fits decides."""
    left_out = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!")
        if rule and not rule.startswith("#") and any(fnmatch.fnmatch(p, pattern) for p in (path, path.split("/")[0])):
            left_out = not rule.startswith("!")
    return left_out


def spinstream_commands():
    """(where, words after `spinstream`) of every command in docs/ and docker/."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if match := re.match(r"(?:    |ExecStart=)(?:\S*/)?spinstream (.*)", line):
                yield page.name, shlex.split(match[1], comments=True)
    for dockerfile in DOCKERFILES:
        yield from (
            (dockerfile.name, json.loads(rest)) for keyword, rest in instructions(dockerfile) if keyword == "CMD"
        )
    yield (
        "compose.yaml",
        yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["spinstream"]["command"],
    )


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_there_and_sent_to_the_builder(dockerfile):
    copied = [
        rest.split()[:-1] for keyword, rest in instructions(dockerfile) if keyword == "COPY" and "--from" not in rest
    ]
    for path in itertools.chain.from_iterable(copied):
        assert (ROOT / path).exists(), path
        assert not is_left_out(path), path


def test_what_no_image_needs_is_not_sent_to_the_builder():
    assert all(
        is_left_out(path) for path in (".git/config", "tests/conftest.py", "demo/raw.h5", "recordings/patient.h5")
    )


def parse(words):
    """As the command line would, without running anything or asking for files."""
    command = main.commands[words[0]]
    context = click.Context(command)
    values, _, _ = command.make_parser(context).parse_args(args=list(words[1:]))
    for option in command.params:
        if option.name in values and not isinstance(option.type, click.Path):
            option.type_cast_value(context, values[option.name])


def test_every_command_of_the_pages_and_images_has_the_options_that_it_uses():
    commands = list(spinstream_commands())
    assert len({where for where, _ in commands}) >= 9
    for where, words in commands:
        try:
            parse(words)
        except (click.ClickException, KeyError) as error:
            pytest.fail(f"{where}: spinstream {shlex.join(words)}: {error}")


def test_a_command_with_an_option_that_is_not_there_would_be_found():
    with pytest.raises(click.NoSuchOption):
        parse(["serve", "--recrod", "folder"])


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_images_run_unprivileged_and_stop_in_order():
    for dockerfile in (ROOT / "docker/Dockerfile", ROOT / "docker/gadgetron.Dockerfile"):
        found = instructions(dockerfile)
        assert [rest for keyword, rest in found if keyword == "USER"][-1].split(":")[0] not in ("0", "root")
        assert ("STOPSIGNAL", "SIGTERM") in found
        assert any(keyword == "HEALTHCHECK" for keyword, _ in found)


def test_compose_waits_longer_for_the_server_than_the_server_for_its_sessions():
    server = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["spinstream"]
    drain = next(int(word.partition("=")[2]) for word in server["command"] if word.startswith("--drain"))
    assert int(server["stop_grace_period"].removesuffix("s")) > drain
    over = yaml.safe_load((ROOT / "docker/compose.cuda.yaml").read_text())["services"]
    assert over.keys() == {"spinstream"}


def test_prometheus_asks_the_port_that_the_server_shows_its_metrics_at():
    targets = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]
    server = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["spinstream"]
    assert targets["targets"] == ["spinstream:9003"]
    assert "--monitor=0.0.0.0:9003" in server["command"]


def test_the_open_recon_label_says_the_version_and_port_of_the_server():
    label = json.loads((ROOT / "docker/open_recon.json").read_text())
    package = ConfigParser()
    package.read(ROOT / "setup.cfg")
    assert label["general"]["version"] == package["metadata"]["version"]
    assert label["reconstruction"]["port"] == 9002
    assert all(re.fullmatch("[A-Za-z0-9]+", parameter["id"]) for parameter in label["parameters"])


@pytest.mark.peers
@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile):
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    told = subprocess.run(["hadolint", dockerfile], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout
