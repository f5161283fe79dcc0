"""One QMP connection. Only this package imports qemu.qmp.

link.py is the session itself; connect.py begins and ends one; client.py makes qemu.qmp's client fit for
a long life; dial.py opens sockets and looks who is at the other end; change.py is a command that was
sent; event.py an event; recorder.py writes all messages into a file.
"""

from qmpsnap.run.session.connect import adopt, connect
from qmpsnap.run.session.dial import Address, describe
from qmpsnap.run.session.event import Event
from qmpsnap.run.session.link import Session
from qmpsnap.run.session.recorder import Recorder, recording

__all__ = ["Address", "Event", "Recorder", "Session", "adopt", "connect", "describe", "recording"]
