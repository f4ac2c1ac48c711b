"""What Inductor's generated code calls."""

import re


def calls(code):
    """Of our operators, by name in the code's order: with results that they make, or that Inductor has planned."""
    return [
        made or into
        for made, into in re.findall(r"torch\.ops\.srmsnorm\.(\w+)\.default\(|_srmsnorm\._out_(\w+)\(", code)
    ]


def planned(code):
    """Those whose results are Inductor's buffers."""
    return re.findall(r"_srmsnorm\._out_(\w+)\(", code)
