"""XML from anywhere: entities, document types and the network stay off."""

from __future__ import annotations

from lxml import etree


class XmlError(ValueError):
    """Text that is not acceptable XML; `line` is where."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def parse_xml(raw: bytes) -> etree._Element:
    """The root element.

    Raises:
        XmlError: not well-formed, or it declares a document type (entities can hide anything there).
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(raw, parser)
    except etree.XMLSyntaxError as error:
        raise XmlError(error.lineno or 1, f"not well-formed XML: {error.msg}") from None
    if root.getroottree().docinfo.doctype:
        raise XmlError(1, "a document type declaration is not taken; remove <!DOCTYPE ...>")
    return root
