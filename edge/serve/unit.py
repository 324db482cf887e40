"""The systemd unit of a server, and the file by which avahi announces it.

What a bundle decides in them is typed: its name as a description, its planned memory.
"""

from xml.sax.saxutils import escape

from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.engines.llama.ready import SHELF_BYTES
from boardfit.edge.errors import InputError
from boardfit.edge.process.cage import SYSTEMD
from boardfit.edge.types import Plan
from boardfit.edge.units import MIB, printable

SERVE_SERVICE = "boardfit-serve.service"
#: The server's secret on a board, for its manager's eyes; the service gets a copy.
KEY_FILE = "/etc/boardfit/serve.key"
#: What a server takes beside its model: modules, connections, unread answers, a child that renders.
#: Anonymous memory (Pss_Anon) of all its processes, less that of one that answers alone, x86-64: 27
#: MiB with 16 clients at once, 46 after a prompt of 400,000 characters was refused.
SERVER_BYTES = 48 * MIB
#: What llguidance takes once an answer is held to a form, and that per token of the vocabulary:
#: anonymous memory of its tree, x86-64: 21, 42 and 60 MiB at 49,000, 152,000 and 262,000 tokens.
FORM_BYTES, FORM_BYTES_PER_TOKEN = 12 * MIB, 200
_LARGEST_VOCABULARY = 262_144

_MAX_NAME = 80
_MOST_BYTES = 1 << 50
_CLOSED = ("PrivateNetwork=", "RestrictAddressFamilies=")


def serve_unit(name: str, plan: Plan, root: str, *, program: str, port: int) -> str:
    """The text of the service that answers over HTTP with the current release below `root`.

    Raises InputError when the plan's memory is no number of bytes.
    """
    form_bytes = FORM_BYTES + FORM_BYTES_PER_TOKEN * _LARGEST_VOCABULARY
    most = planned_bytes(plan) * 11 // 10 + SERVER_BYTES + form_bytes + SHELF_BYTES
    cage = [line for line in SYSTEMD.splitlines() if not line.startswith(_CLOSED)]
    return read_text_beside(
        __file__,
        SERVE_SERVICE,
        name=description(name),
        root=root,
        program=program,
        port=port,
        most_mib=-(-most // MIB),
        key=KEY_FILE,
        cage="\n".join(cage),
    )


def avahi_service(name: str, port: int) -> str:
    """A file for /etc/avahi/services: browsers of the local network find the server by it."""
    return f"""<?xml version="1.0" standalone="no"?>
<!DOCTYPE service-group SYSTEM "avahi-service.dtd">
<service-group>
  <name replace-wildcards="yes">boardfit on %h</name>
  <service>
    <type>_http._tcp</type>
    <port>{port}</port>
    <txt-record>path=/</txt-record>
    <txt-record>api=openai,ollama</txt-record>
    <txt-record>model={escape(description(name))}</txt-record>
  </service>
</service-group>
"""


def description(name: str) -> str:
    """A model's name as a unit may show it. Percent signs, backslashes, quotes and line breaks mean
    something to systemd, so that only harmless signs are kept.
    """
    return "".join(c if c.isalnum() or c in " .,:()+-_" else "_" for c in name)[:_MAX_NAME].strip()


def planned_bytes(plan: Plan) -> int:
    """The predicted peak. Raises InputError when it is no number of bytes."""
    try:
        peak = plan.peak_bytes
    except TypeError:
        peak = None
    if type(peak) is not int or not 0 < peak <= _MOST_BYTES:
        raise InputError(
            f"the plan's memory is {printable(repr(peak), 40)}, expected a number of bytes",
            next_step="build the bundle again",
        )
    return peak
