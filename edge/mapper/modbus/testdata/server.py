"""A Modbus server for the tests, on a free port of 127.0.0.1 (or the one given).

Usage: server.py tcp|rtu [PORT]

Prints "listening PORT", then a line for each access: UNIT FUNCTION ADDRESS COUNT.
Units 1 and 2 have 200 of everything; coil and input N are on where N is a multiple
of 3, input register N holds 1000+N, holding registers hold 0. Each line on standard
input, "UNIT TABLE ADDRESS VALUE...", sets values (TABLE: c, d, i or h), and is
answered by "set". It ends with standard input.
"""
import asyncio
import sys
import threading

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server.async_io import ModbusTcpServer
from pymodbus.transaction import ModbusRtuFramer, ModbusSocketFramer


def say(*words):
    print(*words, flush=True)


class Slave(ModbusSlaveContext):
    def __init__(self, unit):
        size = 200
        super().__init__(
            di=ModbusSequentialDataBlock(0, [n % 3 == 0 for n in range(size)]),
            co=ModbusSequentialDataBlock(0, [n % 3 == 0 for n in range(size)]),
            ir=ModbusSequentialDataBlock(0, [1000 + n for n in range(size)]),
            hr=ModbusSequentialDataBlock(0, [0] * size),
            zero_mode=True,
        )
        self.unit = unit

    def getValues(self, fc_as_hex, address, count=1):
        if fc_as_hex < 5:
            say(self.unit, fc_as_hex, address, count)
        return super().getValues(fc_as_hex, address, count)

    def setValues(self, fc_as_hex, address, values):
        say(self.unit, fc_as_hex, address, len(values))
        super().setValues(fc_as_hex, address, values)


async def main():
    slaves = {unit: Slave(unit) for unit in (1, 2)}
    framer = {"tcp": ModbusSocketFramer, "rtu": ModbusRtuFramer}[sys.argv[1]]
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    server = ModbusTcpServer(
        ModbusServerContext(slaves=slaves, single=False),
        framer=framer,
        address=("127.0.0.1", port),
        allow_reuse_address=True,
        ignore_missing_slaves=True,
    )
    task = asyncio.create_task(server.serve_forever())
    while server.server is None or not server.server.sockets:
        await asyncio.sleep(0.01)
    say("listening", server.server.sockets[0].getsockname()[1])
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def put(line):
        unit, table, address, *values = line.split()
        store = slaves[int(unit)].store[table]
        store.setValues(int(address), [int(v) for v in values])
        say("set")

    def read():
        for line in sys.stdin:
            loop.call_soon_threadsafe(put, line)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()
    task.cancel()


asyncio.run(main())
