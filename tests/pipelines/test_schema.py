import shutil
import subprocess

import pytest
from lxml import etree

from pipelines.definition import DEFINITIONS
from pipelines.registry import installed_gadgets
from pipelines.schema import SCHEMA_FILE, generate_schema

from mrd_items import configuration


@pytest.fixture(scope="module")
def schema() -> etree.XMLSchema:
    return etree.XMLSchema(etree.fromstring(generate_schema(installed_gadgets())))


@pytest.mark.parametrize("path", sorted(DEFINITIONS.glob("*.xml")), ids=lambda path: path.name)
def test_shipped_definitions_are_valid(schema, path):
    schema.assertValid(etree.parse(path))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name="Preview"', 'name="Preveiw"'),
        ("<version>2", "<version>1"),
        ("run_chain", "other"),
        ("<external>", "<gadget/><external>"),
    ],
)
def test_mistakes_are_not_valid(schema, old, new):
    document = configuration("Preview")
    assert schema.validate(etree.fromstring(document))
    assert old in document
    assert not schema.validate(etree.fromstring(document.replace(old, new)))


def test_the_shipped_schema_is_up_to_date():
    """Regenerate it with `make schema`."""
    assert SCHEMA_FILE.read_bytes() == generate_schema(installed_gadgets())


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("xmllint") is None, reason="xmllint is not installed")
def test_xmllint_agrees():
    files = [str(path) for path in DEFINITIONS.glob("*.xml")]
    subprocess.run(["xmllint", "--noout", "--schema", str(SCHEMA_FILE), *files], check=True, capture_output=True)
