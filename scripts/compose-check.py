#!/usr/bin/env python3
"""Whether deploy/compose.yml is what it says, where no image can be pulled: Compose takes its form; every file that it names is
there; every setting that it, its env files (what is commented out too) or its configuration files name is one that the program
knows. usage: compose-check.py DIR-OF-PROGRAMS"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yml"
PROGRAMS = pathlib.Path(sys.argv[1])
problems = []


def check(holds, what):
    if not holds:
        problems.append(what)


def compose():
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    return ["docker", "compose"] if plugin else ["docker-compose"]


def rendered():
    """What Compose makes of the file, with every profile."""
    secret = DEPLOY / "secrets" / "api-key"
    made = not secret.exists()
    if made:
        secret.parent.mkdir(exist_ok=True)
        secret.write_text("for this check\n")
    try:
        command = compose() + ["-f", str(COMPOSE)]
        for profile in profiles():
            command += ["--profile", profile]
        ran = subprocess.run(command + ["config"], capture_output=True, text=True)
    finally:
        if made:
            secret.unlink()
            secret.parent.rmdir()
    if ran.returncode != 0:
        sys.exit(f"{COMPOSE} is not valid:\n{ran.stderr}")
    return yaml.safe_load(ran.stdout)


def profiles():
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()
    return sorted({profile for service in services for profile in service.get("profiles", [])})


def commented(path):
    """Every setting of an env file, those that a comment only proposes too."""
    found = {}
    for line in path.read_text().splitlines():
        match = re.match(r"#?([A-Z][A-Z0-9_]*)=(.*)$", line)
        if match:
            found[match[1]] = match[2]
    return found


def takes(program, config, settings):
    environment = {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), **settings}
    command = [str(PROGRAMS / program), "--check", "--config", str(config)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def check_files(name, service, targets):
    build = service.get("build")
    if build:
        check(build.get("target") in targets, f"{name}: deploy/Dockerfile has no stage {build.get('target')}")
    elif "image" not in service:
        check(False, f"{name}: nothing to run")
    for volume in service.get("volumes", []):
        text = volume if isinstance(volume, str) else f"{volume.get('source')}:{volume.get('target')}"
        source = text.split(":")[0]
        if source.startswith(("/", ".")):
            check((DEPLOY / source).exists(), f"{name}: {source} is not there")
    if "profiles" not in service and name != "identities":
        check("healthcheck" in service or service.get("image") == "flux-agent", f"{name}: nobody knows whether it is well")
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    check("memory" in limits, f"{name}: it may take all memory")


def check_settings(name, service):
    program = {"flux-gateway": "flux-gateway", "flux-agent": "flux-agent"}.get(service.get("image"))
    if program is None or name == "identities":
        return
    config = DEPLOY / program.removeprefix("flux-") / "flux.yaml"
    said = {key: str(value) for key, value in (service.get("environment") or {}).items() if key.startswith("FLUX_")}
    if program == "flux-gateway":
        # From the secret, as start.sh has it.
        said["FLUX_GATEWAY__API_KEY"] = "for this check"
    proposed = commented(DEPLOY / "gateway.env") if program == "flux-gateway" else {}
    for settings in (said, {**proposed, **said}):
        ran = takes(program, config, settings)
        check(ran.returncode == 0, f"{name}: {ran.stderr.strip()}")
    refused = takes(program, config, {**said, "FLUX_QUEUE__NO_SUCH_SETTING": "1"})
    check(refused.returncode != 0, f"{program} --check takes anything")


def check_dockerfile():
    text = (DEPLOY / "Dockerfile").read_text()
    for line in text.splitlines():
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                check((ROOT / source).exists(), f"Dockerfile: {source} is not there")
    return set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.M))


def main():
    targets = check_dockerfile()
    document = rendered()
    raw = yaml.safe_load(COMPOSE.read_text())["services"]
    check(set(raw) == set(document["services"]), f"Compose lost a service: {set(raw) ^ set(document['services'])}")
    for name, service in raw.items():
        check_files(name, service, targets)
        check_settings(name, service)
    for script in [*DEPLOY.glob("*/*.sh")]:
        ran = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        check(ran.returncode == 0, f"{script.name}: {ran.stderr}")
    if problems:
        sys.exit("deploy/compose.yml:\n  " + "\n  ".join(problems))
    print(f"deploy/compose.yml: {len(raw)} services in {len(profiles())} profiles, each setting is known")


main()
