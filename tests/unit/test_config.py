import pytest

from dicom_node.config import CONFIG_VARIABLE, PREFIX, SettingsError, load

PEERS = """
[[peers]]
name = "pacs"
ae_title = "ORTHANC"
host = "10.0.0.1"
port = 104
destination = true

[[peers]]
name = "ct"
ae_title = "CT1"
host = "10.0.0.2"
port = 104
"""

CODE = """
[codes.covid19]
value = "840539006"
scheme = "SCT"
meaning = "COVID-19"
"""


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def written(tmp_path, text):
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def test_it_has_the_documented_defaults():
    settings = load()
    assert (settings.ae_title, settings.port, settings.bundle) == ("CXRSCREEN", 11112, "starter")
    assert settings.peers == ()


def test_a_file_sets_and_a_variable_overrides_it(tmp_path, monkeypatch):
    path = written(tmp_path, 'port = 11113\nae_title = "FILE"\n' + PEERS)
    monkeypatch.setenv("DICOM_NODE_PORT", "11114")
    settings = load(path)
    assert (settings.ae_title, settings.port) == ("FILE", 11114)
    assert [peer.name for peer in settings.destinations] == ["pacs"]


def test_a_variable_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv(CONFIG_VARIABLE, str(written(tmp_path, "port = 11115\n")))
    assert load().port == 11115


def test_peers_can_come_from_a_variable(monkeypatch):
    monkeypatch.setenv("DICOM_NODE_PEERS", '[{"name": "a", "ae_title": "A", "host": "h", "port": 104}]')
    assert load().peers[0].name == "a"


def test_codes_of_questions_come_from_the_file_a_variable_or_a_file_of_it(tmp_path, monkeypatch):
    assert load().codes == {}
    path = written(tmp_path, CODE)
    assert load(path).codes["covid19"].value == "840539006"
    other = '{"covid19": {"value": "COV", "scheme": "99SITE", "meaning": "COVID"}}'
    monkeypatch.setenv("DICOM_NODE_CODES", other)
    assert load(path).codes["covid19"].scheme == "99SITE"
    monkeypatch.delenv("DICOM_NODE_CODES")
    (tmp_path / "codes.json").write_text(other)
    monkeypatch.setenv("DICOM_NODE_CODES_FILE", str(tmp_path / "codes.json"))
    assert load().codes["covid19"].meaning == "COVID"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1\n", "unknown setting prot"),
        ("port = 0\n", "wrong setting port"),
        ("port = true\n", "wrong setting port"),
        ('"a\\nb" = 1\n', "unknown setting a b"),
        ('ae_title = "ABCDEFGHIJKLMNOPQ"\n', "wrong setting ae_title"),
        ('ae_title = "A\\\\B"\n', "wrong setting ae_title"),
        ('[[peers]]\nname = "a"\n', "wrong setting peers.0.ae_title"),
        (PEERS.replace('"ct"', '"pacs"'), "same name"),
        ("port = \n", "not valid TOML"),
        ("lease_s = -1\n", "wrong setting lease_s"),
        ("lease_s = inf\n", "wrong setting lease_s"),
        ("lease_s = 1e12\n", "wrong setting lease_s"),
        ('device = "tpu"\n', "wrong setting device"),
        ('[codes.covid19]\nvalue = "1"\nscheme = "SCT"\n', "wrong setting codes.covid19.meaning"),
        (CODE.replace("840539006", "882784691000119100"), "wrong setting codes.covid19.value"),
        (CODE.replace("SCT", "99" + "X" * 15), "wrong setting codes.covid19.scheme"),
        (CODE.replace("COVID-19", "x" * 65), "wrong setting codes.covid19.meaning"),
        (CODE.replace("COVID-19", "a\\\\b"), "wrong setting codes.covid19.meaning"),
        (CODE.replace("SCT", ""), "wrong setting codes.covid19.scheme"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(tmp_path, text, told):
    with pytest.raises(SettingsError) as raised:
        load(written(tmp_path, text))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value).strip()


def test_an_unknown_variable_is_named(monkeypatch):
    monkeypatch.setenv("DICOM_NODE_PROT", "1")
    with pytest.raises(SettingsError, match="DICOM_NODE_PROT"):
        load()


def test_a_variable_that_is_no_json_is_named(monkeypatch):
    monkeypatch.setenv("DICOM_NODE_PEERS", "[{")
    with pytest.raises(SettingsError, match="wrong setting DICOM_NODE_PEERS: it is not JSON"):
        load()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml does not exist"):
        load(tmp_path / "nowhere.toml")


def test_a_password_in_a_url_is_never_shown(tmp_path):
    with pytest.raises(SettingsError) as raised:
        load(written(tmp_path, 'database_url = ["postgresql://u:geheim@h/d"]\n'))
    assert "geheim" not in str(raised.value)
    same_name_twice = 'database_url = "postgresql://u:geheim@h/d"\n' + PEERS.replace('"ct"', '"pacs"')
    with pytest.raises(SettingsError) as raised:
        load(written(tmp_path, same_name_twice))
    assert "same name" in str(raised.value)
    assert "postgresql" not in str(raised.value)


def test_a_secret_comes_from_a_file_and_into_the_url(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("ge/hei@m\n")
    monkeypatch.setenv("DICOM_NODE_DATABASE_PASSWORD_FILE", str(secret))
    monkeypatch.setenv("DICOM_NODE_BROKER_PASSWORD_FILE", str(secret))
    settings = load(written(tmp_path, 'database_url = "postgresql://cxr@db/cxr"\nbroker_url = "redis://bell:6379/0"\n'))
    assert settings.database_dsn == "postgresql://cxr:ge%2Fhei%40m@db/cxr"
    assert settings.broker_dsn == "redis://:ge%2Fhei%40m@bell:6379/0"
    assert "hei" not in repr(settings)


def test_without_a_password_the_url_stays_as_it_is():
    settings = load()
    assert settings.database_dsn == settings.database_url
    assert settings.broker_dsn == ""


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"DICOM_NODE_PORT": "1", "DICOM_NODE_PORT_FILE": "x"}, "both set"),
        ({"DICOM_NODE_DATABASE_PASSWORD_FILE": "/nowhere/secret"}, "cannot be read: No such file"),
        ({"DICOM_NODE_DATABASE_PASSWORD_FILE": "/dev/null"}, "is empty"),
        ({"DICOM_NODE_DATABASE_PASSWORD": "p"}, "database_password is set"),
        (
            {"DICOM_NODE_BROKER_PASSWORD": "p", "DICOM_NODE_BROKER_URL": "redis://:geheim@h/0"},
            "broker_url holds a password",
        ),
        ({"DICOM_NODE_PROT_FILE": "x"}, "unknown setting"),
        ({"DICOM_NODE_PEERS_FILE": __file__}, "is not JSON"),
        ({"DICOM_NODE_PORT_FILE": __file__}, "wrong setting port"),
    ],
)
def test_a_secret_that_cannot_be_used_is_named(monkeypatch, variables, told):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load()
    assert told in str(raised.value)
    assert "geheim" not in str(raised.value)
    assert "import" not in str(raised.value)  # nor what else stood in a file


def test_peers_can_come_from_a_file_of_a_variable(tmp_path, monkeypatch):
    file = tmp_path / "peers.json"
    file.write_text('[{"name": "a", "ae_title": "A", "host": "h", "port": 104}]')
    monkeypatch.setenv("DICOM_NODE_PEERS_FILE", str(file))
    assert load().peers[0].name == "a"
