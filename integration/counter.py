"""A count in the guest's memory and on its disks, by which one sees whether they are of one instant."""

from __future__ import annotations

import anyio

# Each round looks whether every disk has the count that memory has, and then counts one on: a guest that
# was put back goes on with this, and finds by itself what does not fit.
_LOOP = """
n=$(cat /run/count)
while [ ! -e /run/stop ]; do
    for disk in DEVICES; do
        found=$(dd if=$disk bs=512 count=1 iflag=direct 2> /dev/null | tr -d ' ')
        [ "$found" = $n ] || echo "$disk has $found, memory $n" >> /run/wrong
    done
    n=$((n + 1))
    echo $n > /run/count
    for disk in DEVICES; do
        printf %-512s $n | dd of=$disk bs=512 oflag=direct conv=notrunc 2> /dev/null
    done
done
: > /run/ended
"""


class Counter:
    """A count in the guest's RAM and on each of its disks."""

    def __init__(self, guest, devices):
        self._guest, self._devices = guest, devices

    async def _run(self, script):
        """Run a script in the guest, which may be one of ten that share a processor."""
        return await self._guest.run(script, limit=200)

    async def set(self, number):
        writes = "; ".join(
            f"printf %-512s {number} | dd of={device} bs=512 oflag=direct conv=notrunc 2> /dev/null"
            for device in self._devices.values()
        )
        await self._run(f"echo {number} > /run/count; {writes}")

    async def get(self):
        """The count in RAM, and that on each disk."""
        reads = "; ".join(
            f"dd if={device} bs=512 count=1 iflag=direct 2> /dev/null" for device in self._devices.values()
        )
        memory, *disks = (await self._run(f"cat /run/count; {reads}")).split()
        return {"RAM": memory, **dict(zip(self._devices, disks, strict=True))}

    async def start(self):
        """Count on and on, all the while."""
        script = _LOOP.replace("DEVICES", " ".join(self._devices.values()))
        await self._run(
            f"cat > /run/loop <<'END'\n{script}END\nsetsid sh /run/loop > /dev/null 2>&1 < /dev/null &"
        )

    async def now(self):
        """The count in RAM; a reader may find nothing, for the shell empties the file before it writes."""
        # No process is started: the guest shall count, not answer.
        return int(await self._run("until read -r n < /run/count; do :; done; echo $n"))

    async def more(self, rounds):
        """Wait until it has counted so many on; return the count at first."""
        first = await self.now()
        with anyio.fail_after(120):
            while await self.now() < first + rounds:  # the guest tells of nothing by itself
                await anyio.sleep(0.02)
        return first

    async def stop(self):
        """Let the counting end; return what did not fit, or ""."""
        await self._run(": > /run/stop; while [ ! -e /run/ended ]; do usleep 5000; done")
        return await self._run("cat /run/wrong 2> /dev/null; true")
