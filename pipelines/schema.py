"""The XML Schema of pipeline definitions, generated from the gadgets' declarations.

For editors: it completes gadget and property names and shows their meaning. XML Schema 1.0 cannot tie a property's type
to the name of its gadget, so types, ranges and order are checked by `pipelines.definition`, not by the schema.
"""

from __future__ import annotations

from typing import Any

from lxml import etree
from lxml.builder import ElementMaker

from gadgets.gadget import Gadget
from pipelines.definition import CHILD_MODULE, CHILD_TARGET, DEFINITIONS
from pipelines.registry import Registry, installed_gadgets

NAMESPACE = "http://www.w3.org/2001/XMLSchema"
SCHEMA_FILE = DEFINITIONS / "spinstream.xsd"
XS = ElementMaker(namespace=NAMESPACE, nsmap={"xs": NAMESPACE})


def generate_schema(registry: Registry) -> bytes:
    """The schema for these gadgets."""
    schema = XS.schema(
        XS.element(_configuration(), name="configuration"),
        _names("gadgetName", {name: gadget.summary() for name, gadget in registry.items()}),
        _names("propertyName", _property_meanings(registry)),
    )
    return bytes(etree.tostring(schema, pretty_print=True, xml_declaration=True, encoding="UTF-8"))


def _configuration() -> etree._Element:
    return _sequence(
        _element("version", XS.simpleType(_enumeration({"2": "the only version"}, base="xs:integer"))),
        _element("readers", _sequence(_element("reader", _named_class(slot=True), many=True)), optional=True),
        _element("writers", _sequence(_element("writer", _named_class(slot=False), many=True)), optional=True),
        _element("stream", _sequence(_element("external", _external()))),
    )


def _named_class(slot: bool) -> etree._Element:
    parts = [_typed("slot", "xs:unsignedShort")] if slot else []
    return _sequence(*parts, _typed("dll", "xs:string"), _typed("classname", "xs:string"))


def _external() -> etree._Element:
    execute = XS.complexType(_fixed("name", CHILD_MODULE), _fixed("target", CHILD_TARGET), _fixed("type", "python"))
    configuration = _sequence(_element("gadget", _gadget(), many=True))
    return _sequence(_element("execute", execute), _element("configuration", configuration))


def _gadget() -> etree._Element:
    setting = XS.complexType(_attribute("name", "propertyName"), _attribute("value", "xs:string"))
    return XS.complexType(
        XS.sequence(XS.element(setting, name="property", minOccurs="0", maxOccurs="unbounded")),
        _attribute("name", "gadgetName"),
    )


def _property_meanings(registry: Registry) -> dict[str, str]:
    meanings: dict[str, list[str]] = {}
    for name, gadget in registry.items():
        for key, words in _described(gadget).items():
            meanings.setdefault(key, []).append(f"{name}: {words}")
    return {key: "\n".join(lines) for key, lines in sorted(meanings.items())}


def _described(gadget: type[Gadget[Any]]) -> dict[str, str]:
    return {
        name: f"{declared.meaning}. Expects {declared.expected}; default {declared.default_text}."
        for name, declared in gadget.properties().items()
    }


def _names(name: str, meanings: dict[str, str]) -> etree._Element:
    return XS.simpleType(_enumeration(meanings, base="xs:string"), name=name)


def _enumeration(meanings: dict[str, str], base: str) -> etree._Element:
    values = [
        XS.enumeration(XS.annotation(XS.documentation(meaning)), value=value) for value, meaning in meanings.items()
    ]
    return XS.restriction(*values, base=base)


def _sequence(*parts: etree._Element) -> etree._Element:
    return XS.complexType(XS.sequence(*parts))


def _element(name: str, kind: etree._Element, many: bool = False, optional: bool = False) -> etree._Element:
    occurs = {"maxOccurs": "unbounded"} if many else {}
    if optional:
        occurs["minOccurs"] = "0"
    return XS.element(kind, name=name, **occurs)


def _typed(name: str, kind: str) -> etree._Element:
    return XS.element(name=name, type=kind)


def _attribute(name: str, kind: str) -> etree._Element:
    return XS.attribute(name=name, type=kind, use="required")


def _fixed(name: str, value: str) -> etree._Element:
    return XS.attribute(name=name, type="xs:string", use="required", fixed=value)


if __name__ == "__main__":
    SCHEMA_FILE.write_bytes(generate_schema(installed_gadgets()))
