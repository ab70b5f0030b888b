"""Settings: one TOML file, `DICOM_NODE_*` variables over it, and secrets in files that variables name."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as PydanticSettingsError,
)

from dicom_node.bundle import Code
from dicom_node.domain import NodeError

PREFIX = "DICOM_NODE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
_FILE = "_FILE"  # DICOM_NODE_DATABASE_PASSWORD_FILE names the file that holds the value, as containers keep secrets


def _no_boolean(value: Any) -> Any:
    """`true` is no 1."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted")  # noqa: TRY004 - pydantic wants a ValueError
    return value


# PS3.5 6.2: AE is at most 16 characters of the default repertoire, no backslash, no control characters.
AETitle = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")
]
Port = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=65535)]
Codes = dict[str, Code]  # by the name of a target
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class SettingsError(NodeError):
    """A setting is wrong or unknown; the message is one line that names it."""

    reason = "settings"


class Peer(BaseModel):
    """One DICOM application entity that the node talks to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Name in the ledger and in messages; unique.")
    ae_title: AETitle = Field(description="The peer's AE title.")
    host: str = Field(min_length=1, description="Host name or address.")
    port: Port = Field(description="TCP port.")
    destination: bool = Field(False, description="Whether results are delivered to this peer.")
    objects: tuple[Literal["heatmap", "report"], ...] = Field(
        ("heatmap", "report"), min_length=1, description="What is delivered to it: heatmap, report, or both."
    )
    only_flagged: bool = Field(
        False, description="Deliver the heatmap of a flagged image only, and the report of a study that holds one."
    )
    senders: tuple[AETitle, ...] = Field(
        (), description="Deliver results only of what these AE titles sent; empty for all."
    )
    retrieve: tuple[Literal["move", "get", "web"], ...] = Field(
        (),
        description="How a retrospective run fetches from this peer, the first way first, the next where one fails: "
        "move (C-MOVE), get (C-GET), web (WADO-RS). Empty: it is no source.",
    )
    find: Literal["dicom", "web"] = Field(
        "dicom", description="How it is asked what it holds: dicom (C-FIND) or web (QIDO-RS)."
    )
    web_url: str = Field("", description="Its DICOMweb service root, such as https://pacs.example/dicom-web.")
    web_user: str = Field("", description="User name for `web_url` (HTTP Basic), if it wants one.")
    web_password: SecretStr = Field(SecretStr(""), description="Password for `web_url`.")


class Retrospective(BaseModel):
    """How politely an archive is screened, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: str = Field(
        "22:00-06:00",
        pattern=r"^$|^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$",
        description="Hours of the site's day in which a run fetches; empty for all day.",
    )
    time_zone: str = Field("UTC", description="The site's time zone, such as Europe/Vienna.")
    studies_per_minute: int = Field(30, ge=1, le=10_000, description="Most studies that are begun in any minute.")
    retrievals: int = Field(2, ge=1, le=64, description="Most studies that are fetched at the same time.")
    held_gb: float = Field(
        20.0, gt=0, allow_inf_nan=False, description="Most gigabytes of fetched images in the archive at a time."
    )
    waiting_images: int = Field(
        256, ge=1, description="Images that wait for a worker at which no further study is fetched."
    )
    purge: bool = Field(True, description="Delete what was fetched once it is screened; the results stay.")
    study_timeout_s: Seconds = Field(600.0, description="Longest time in which one study is fetched.")
    stall_timeout_s: Seconds = Field(60.0, description="Longest time without a further image of it.")
    slow_s: Seconds = Field(60.0, description="A study that takes longer than this is slow; three of them are a pause.")
    pause_s: Seconds = Field(
        60.0, description="First pause after an error of the PACS, or when it is slow; it doubles."
    )
    pause_max_s: Seconds = Field(1800.0, description="Longest such pause.")
    nightly: bool = Field(False, description="Screen the studies of the day before when the window opens.")
    nightly_source: str = Field("", description="The peer that is asked for them; empty where one alone can be.")
    nightly_deliver: bool = Field(False, description="Send the results of nightly runs to the destinations.")
    catch_up_days: int = Field(7, ge=1, le=366, description="Most missed nights that are caught up.")

    @field_validator("window")
    @classmethod
    def _is_no_moment(cls, value: str) -> str:
        if value and value[:5] == value[6:]:
            raise ValueError("it opens and closes at the same time; leave it empty for all day")
        return value

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(
                "no such time zone; names are those of the IANA database, such as Europe/Vienna"
            ) from error
        return value


class Worklist(BaseModel):
    """In which order radiologists are shown what waits for them, and how they get to the images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ageing_hours: float = Field(
        4.0,
        gt=0,
        le=168,
        description="A flagged study goes before what came at most so much earlier, never before more.",
    )
    targets: tuple[str, ...] = Field(
        (), description="The questions whose flags move a study up, such as pneumonia; empty for all."
    )
    fixed_locations: tuple[str, ...] = Field(
        (), description="Locations whose studies keep the order in which they came, as the worklist shows them."
    )
    disagreement_retracts: bool = Field(
        False, description="Take a study's results back from the destinations when a person disagrees with them."
    )
    viewer_url: str = Field(
        "",
        pattern=r"^$|^https?://",
        description="The site's viewer: a URL with {study_instance_uid}, {accession_number} or {patient_id} in it.",
    )

    def moves_up(self, target: str) -> bool:
        """Whether a flag of this question moves a study up."""
        return not self.targets or target in self.targets


class Web(BaseModel):
    """Where the worklist's pages are served, and how they are protected on their way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to serve on; others than loopback need TLS or a reverse proxy.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0: no pages are served.")
    tls_certificate: Path | None = Field(None, description="PEM file of the certificate and those that sign it.")
    tls_key: Path | None = Field(None, description="PEM file of its private key.")
    behind_proxy: bool = Field(
        False, description="A reverse proxy with TLS stands before it and sets X-Forwarded-For and X-Forwarded-Proto."
    )
    proxies: tuple[str, ...] = Field(
        ("127.0.0.1", "::1"), description="Addresses of those proxies, or networks: whose X-Forwarded-For is believed."
    )
    trusted_network: bool = Field(
        False, description="Serve other addresses as it is: the network is a container's, published on loopback."
    )
    session_hours: float = Field(12.0, gt=0, le=168, description="After so many hours a person logs in again.")

    @property
    def is_encrypted(self) -> bool:
        """Whether browsers reach it by TLS."""
        return self.tls_certificate is not None or self.behind_proxy

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_certificate else 'http'}://{host}:{self.port}"

    @model_validator(mode="after")
    def _is_protected(self) -> Web:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if not self.is_encrypted and not self.trusted_network and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                f"host {self.host} is not this machine alone: passwords would go over the network as they are; "
                "set tls_certificate and tls_key, or behind_proxy"
            )
        return self


class Settings(BaseSettings):
    """Every setting of the node. Relative paths are taken from the working directory."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    ae_title: AETitle = Field("CXRSCREEN", description="AE title of this node.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: Port = Field(11112, description="TCP port to listen on.")
    database_url: str = Field(
        "sqlite:///cxr-node/ledger.sqlite",
        description="The ledger: sqlite:///FILE in the embedded form, postgresql://USER@HOST/NAME in the service.",
    )
    database_password: SecretStr = Field(SecretStr(""), description="Password for `database_url`, kept out of it.")
    broker_url: str = Field(
        "", description="The service's Celery broker, redis://HOST:6379/0; the embedded form has none."
    )
    broker_password: SecretStr = Field(SecretStr(""), description="Password for `broker_url`, kept out of it.")
    archive_dir: Path = Field(Path("cxr-node/archive"), description="Folder of received and produced objects.")
    bundle: str = Field(
        "starter",
        description="Bundle of weights of `screen` and of the first start; afterwards `bundle use` chooses. "
        "A name, NAME@RELEASE, or a folder that holds manifest.json.",
    )
    bundles_dir: Path = Field(
        Path("cxr-node/bundles"), description="Folder of further installed bundles, each in a folder of its own."
    )
    peers: tuple[Peer, ...] = Field((), description="One [[peers]] table per peer; see below.")
    codes: dict[str, Code] = Field(
        {},
        description="The site's own code of a question in reports: one [codes.TARGET] table per question; see below.",
    )

    retrospective: Retrospective = Field(
        Retrospective(), description="One [retrospective] table: when archives are screened, how politely; see below."
    )

    worklist: Worklist = Field(
        Worklist(),
        description="One [worklist] table: the order of studies on screen, and the site's viewer; see below.",
    )

    web: Web = Field(Web(), description="One [web] table: where the worklist's pages are served; see below.")

    accept_for_processing: bool = Field(False, description="Screen Digital X-Ray Image Storage - For Processing too.")
    keep_declined: bool = Field(False, description="Keep the bytes of declined instances in the archive.")
    store_patient_identity: bool = Field(
        True, description="Keep patient name, ID, accession number and study date in the ledger, for the worklist."
    )
    max_pixels: int = Field(64_000_000, ge=1, description="Largest Rows x Columns that is decoded.")
    decode_timeout_s: Seconds = Field(30.0, description="Longest time in which an image is read and decoded.")
    decode_memory_mb: int = Field(
        2048, ge=128, le=1_048_576, description="Most memory that one image may need while it is decoded, in MiB."
    )
    decode_processes: int = Field(
        0, ge=0, le=256, description="Processes that decode images, each one at a time; 0 for one a core, at most 16."
    )
    batch_size: int = Field(
        0, ge=0, le=256, description="Images that a worker claims at once; 0 for 4 on a CPU and 128 on a GPU."
    )
    step_timeout_s: Seconds = Field(120.0, description="Seconds after which a step that hangs ends its process.")
    lease_s: Seconds = Field(20.0, description="Seconds after which an unrenewed claim is given back.")
    sweep_s: Seconds = Field(5.0, description="Seconds between two sweeps.")
    max_attempts: int = Field(3, ge=1, description="Failed attempts at a screening before it is `failed`.")
    retry_base_s: Seconds = Field(5.0, description="First pause before a delivery is tried again; it doubles.")
    retry_max_s: Seconds = Field(600.0, description="Longest pause between two tries of a delivery.")
    network_timeout_s: Seconds = Field(30.0, description="Longest wait for a peer's answer.")
    commit_timeout_s: Seconds = Field(
        30.0, description="Longest wait for a peer's storage commitment report before it is asked anew."
    )
    study_quiet_s: float = Field(
        5.0,
        ge=0,
        le=86_400,
        description="Seconds without a new image after which a study's report is made; 0: at once.",
    )
    heatmap_size: int = Field(1024, ge=256, le=4096, description="Longer side of the X-ray in the heatmap, in pixels.")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="Device of the networks: cpu, cuda, cuda:1.")
    threads: int = Field(0, ge=0, le=1024, description="Threads of the networks on a CPU; 0 for one a core.")
    min_free_percent: float = Field(
        5.0, ge=0, le=100, description="Free space of the archive's disk below which `doctor` complains, in percent."
    )
    health_dir: Path = Field(
        Path("cxr-node/health"), description="Folder where this machine's processes show `health` that they live."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: variables over the file; the file arrives as init arguments of `load`."""
        return env_settings, init_settings

    def model_post_init(self, context: Any) -> None:
        """Refuse two peers of one name, for deliveries are recorded by it, and a password given twice."""
        names = [peer.name for peer in self.peers]
        if len(set(names)) != len(names):
            raise ValueError("two [[peers]] have the same name; give each its own")
        for peer in self.peers:
            if not peer.web_url and (peer.find == "web" or "web" in peer.retrieve):
                raise ValueError(f"[[peers]] {peer.name}: find or retrieve by web needs web_url")
        for url, password in ("database_url", "database_password"), ("broker_url", "broker_password"):
            if getattr(self, password).get_secret_value() and not _takes_password(getattr(self, url)):
                raise ValueError(f"{password} is set, but {url} holds a password already or names no server")

    @property
    def destinations(self) -> tuple[Peer, ...]:
        """The peers that results are delivered to."""
        return tuple(peer for peer in self.peers if peer.destination)

    @property
    def sources(self) -> tuple[Peer, ...]:
        """The peers that retrospective runs can fetch from."""
        return tuple(peer for peer in self.peers if peer.retrieve)

    def with_web(self, changed: dict[str, Any]) -> Settings:
        """The same settings with other values of [web].

        Raises
        ------
        SettingsError
        """
        try:
            return self.model_copy(update={"web": Web.model_validate(self.web.model_dump() | changed)})
        except ValidationError as error:
            raise SettingsError(" ".join(error.errors()[0]["msg"].split())) from error

    @property
    def database_dsn(self) -> str:
        """`database_url` with its password."""
        return _with_password(self.database_url, self.database_password)

    @property
    def broker_dsn(self) -> str:
        """`broker_url` with its password."""
        return _with_password(self.broker_url, self.broker_password)


def _takes_password(url: str) -> bool:
    place = urlsplit(url).netloc
    return bool(place) and ":" not in place.rpartition("@")[0]


def _with_password(url: str, password: SecretStr) -> str:
    if not (secret := password.get_secret_value()):
        return url
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}:{quote(secret, safe='')}@{host}").geturl()


def load(config: Path | None = None) -> Settings:
    """Settings from the file (or that of `DICOM_NODE_CONFIG`) and the environment.

    Raises
    ------
    SettingsError
        Naming the wrong or unknown setting, its value's fault and where it stands, in one line.
    """
    if config is None and os.environ.get(CONFIG_VARIABLE):
        config = Path(os.environ[CONFIG_VARIABLE])
    _refuse_unknown_variables()
    from_file: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise SettingsError(f"settings file {config} does not exist")
        try:
            from_file = TomlConfigSettingsSource(Settings, config).toml_data
        except ValueError as error:
            raise SettingsError(f"{config} is not valid TOML: {error}") from error
    try:
        return Settings(**from_file | _secrets())
    except ValidationError as error:
        raise SettingsError(" ".join(_one_line(error, config).split())) from error
    except PydanticSettingsError as error:  # a variable that is not the JSON it should be
        field = re.search(r'field "(\w+)"', str(error))
        named = PREFIX + field[1].upper() if field else f"a variable {PREFIX}*"
        raise SettingsError(f'wrong setting {named}: it is not JSON, such as [{{"name": "pacs", ...}}]') from error


def _refuse_unknown_variables() -> None:
    fields = {PREFIX + name.upper() for name in Settings.model_fields}
    known = fields | {field + _FILE for field in fields} | {CONFIG_VARIABLE}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown setting in the environment: {', '.join(unknown)}; the README lists the settings")


def _secrets() -> dict[str, Any]:
    """The settings whose values stand in files."""
    found: dict[str, Any] = {}
    for name in Settings.model_fields:
        variable = PREFIX + name.upper()
        if (file := os.environ.get(variable + _FILE)) is None:
            continue
        if variable in os.environ:
            raise SettingsError(f"{variable} and {variable}{_FILE} are both set; keep one")
        try:
            found[name] = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            told = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SettingsError(f"{variable}{_FILE} names {file}, which cannot be read: {told}") from error
        if not found[name]:
            raise SettingsError(f"{variable}{_FILE} names {file}, which is empty")
        if get_origin(Settings.model_fields[name].annotation) in (tuple, dict):
            try:
                found[name] = json.loads(found[name])
            except ValueError as error:
                raise SettingsError(f"{variable}{_FILE} names {file}, which is not JSON") from error
    return found


def _one_line(error: ValidationError, config: Path | None) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    source = f" in {config}" if config else ""
    if not where:  # of the settings as a whole; the input is all of them, passwords too
        return f"wrong settings{source}: {first['msg']}"
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where}{source}; the README lists the settings"
    secret = where.endswith(("_url", "_password")) or f"{PREFIX}{where.split('.')[0].upper()}{_FILE}" in os.environ
    shown = "" if secret else f" (given: {str(first['input'])[:80]!r})"
    return f"wrong setting {where}{source} or in {PREFIX}{where.split('.')[0].upper()}: {first['msg']}{shown}"
