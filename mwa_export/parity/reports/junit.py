"""The gates as JUnit XML: each is a test case, so that any CI shows which one failed."""

from __future__ import annotations

from xml.etree import ElementTree

from mwa_export.parity.result import Parity
from mwa_export.report.text import printable


def junit_from_parity(result: Parity) -> str:
    """An XML document with one test suite."""
    failures = sum(gate.verdict == "fails" for gate in result.gates)
    skipped = sum(gate.verdict == "undecided" for gate in result.gates)
    suite = ElementTree.Element(
        "testsuite",
        name="recall parity",
        tests=str(len(result.gates)),
        failures=str(failures),
        errors="0",
        skipped=str(skipped),
        timestamp=result.created,
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("reference", result.reference.name),
        ("candidate", result.candidate.name),
        ("data", result.data.name),
        ("images", str(result.data.images)),
        ("captions", str(result.data.captions)),
        ("mwa-export", result.version),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=printable(value))
    for gate in result.gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname="parity", name=printable(gate.name), time="0"
        )
        if gate.verdict == "fails":
            ElementTree.SubElement(case, "failure", message=printable(gate.message), type="gate")
        elif gate.verdict == "undecided":
            ElementTree.SubElement(case, "skipped", message=printable(gate.message))
    root = ElementTree.Element("testsuites", tests=str(len(result.gates)), failures=str(failures))
    root.append(suite)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'
