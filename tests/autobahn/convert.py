"""Converts the fuzzing client of the Autobahn test suite 25.10.1 from Python 2 to Python 3, with the autobahn 0.10.9 that it needs.

usage: convert.py SUITE AUTOBAHN TO    (two unpacked source archives, and the folder for the result)

A `str` of Python 2 contains bytes. Here it becomes text in Latin-1, one character per byte, and is converted to bytes where the cases
call the code of the protocol. The logic of the cases is not changed. Left out are compression (groups 12 and 13), reports in HTML, TLS
and the server. Each edit checks that the text to replace exists.
"""
import os
import re
import shutil
import subprocess
import sys

suite, autobahn, out = sys.argv[1:4]
shutil.rmtree(out, ignore_errors=True)
os.makedirs(out)
shutil.copytree(f'{autobahn}/autobahn', f'{out}/autobahn')
package = f'{out}/autobahntestsuite'
os.makedirs(f'{package}/case')



def read(p):
    return open(p, 'rb').read().replace(b'\r\n', b'\n').decode('latin-1')


def write(p, s):
    open(p, 'w', encoding='utf-8').write(s)



def sub(s, a, b, n=1):
    assert s.count(a) == n, (a, s.count(a))
    return s.replace(a, b)



# --- autobahn 0.10.9: fixes one Python 3 bug in the payload_len path, which only the test suite uses
p = f'{out}/autobahn/websocket/protocol.py'; s = open(p).read()
write(p, sub(s, 'range(payload_len / len(payload))', 'range(payload_len // len(payload))'))

# --- cases
src = f'{suite}/autobahntestsuite'
for f in sorted(os.listdir(f'{src}/case')):
    if not f.endswith('.py') or f.startswith(('case12', 'case9_9_1')): continue
    s = read(f'{src}/case/{f}')
    s = re.sub(r'^#.*coding[:=].*$', '', s, count=1, flags=re.M)
    s = s.replace('(object, Case, )', '(Case, )')
    s = s.replace('import binascii\n', 'from autobahntestsuite import b2a as binascii\n')
    s = s.replace('from autobahn.websocket.utf8validator import', 'from autobahntestsuite.b2a import')
    if f == 'case.py': s = sub(s, 'pickle.dumps(obj1) == pickle.dumps(obj2)', 'obj1 == obj2')
    if f == 'case10_1_1.py': s = sub(s, 'len(self.payload) / ', 'len(self.payload) // ')
    if f == '__init__.py':
        s = re.sub(r'^(from case9_9_1|from case12|Cases\.extend\(Case1[23]|CaseSubCategories\.update\(Case1[23]).*$', '', s, flags=re.M)
    write(f'{package}/case/{f}', s)
write(f'{package}/b2a.py', '''import binascii
from autobahn.websocket.utf8validator import Utf8Validator as _U
def b(x): return x.encode("latin-1") if isinstance(x, str) else x
def t(x): return x.decode("latin-1") if isinstance(x, (bytes, bytearray)) else x
def b2a_hex(x): return binascii.b2a_hex(b(x)).decode()
class Utf8Validator:
   def __init__(self): self.v = _U()
   def reset(self): self.v.reset()
   def validate(self, x): return self.v.validate(b(x))
''')
write(f'{package}/__init__.py', 'version = "25.10.1"\n')
write(f'{package}/caseset.py', read(f'{src}/caseset.py'))

# --- fuzzing.py
s = read(f'{src}/fuzzing.py')
s = s.replace(', pkg_resources', '').replace('import reactor, ssl', 'import reactor')
s = sub(s, 'from twisted.web.server import Site\nfrom twisted.web.static import File\n', 'from autobahntestsuite.b2a import b, t\n')
s = re.sub(r'from report import .*?JS_MASTER_REPORT\n', '', s, flags=re.S)
s = s.replace('binascii.b2a_hex(', 'b2h(')
s = sub(s, 'def binLogData(', 'def b2h(x):\n   return binascii.b2a_hex(b(x)).decode()\n\ndef binLogData(')
s = sub(s, '   ellipses = " ..."\n   try:\n      if', '   ellipses = b" ..."\n   data = b(data)\n   try:\n      if')
s = sub(s, "p = ''.join(payload)", "p = b''.join(payload)")
s = sub(s, 'self.runCase.onMessage(msg, binary)', 'self.runCase.onMessage(t(msg), binary)')
s = sub(s, 'self.runCase.onPong(payload)', 'self.runCase.onPong(t(payload))')
s = sub(s, 'produceHtml = True', 'produceHtml = False')
s = re.sub(r'self\.contextFactory = ssl\..*', 'raise Exception("no TLS in this port")', s, count=1)
s = re.sub(r'self\.contextFactory = ssl\..*', 'self.contextFactory = None', s, count=1)
s = sub(s, 'class FuzzingProtocol:\n', '''class FuzzingProtocol:
   def sendFrame(self, opcode, payload = b"", *a, **k):
      self._base.sendFrame(self, opcode, b(payload), *a, **k)
   def sendMessage(self, payload, *a, **k):
      self._base.sendMessage(self, b(payload), *a, **k)
   def sendMessageFrameData(self, payload, *a, **k):
      return self._base.sendMessageFrameData(self, b(payload), *a, **k)
   def sendCloseFrame(self, code = None, reasonUtf8 = None, isReply = False):
      self._base.sendCloseFrame(self, code, b(reasonUtf8), isReply)
   def onPing(self, payload):
      self._base.onPing(self, payload)

''')
s = sub(s, 'class FuzzingClientProtocol(FuzzingProtocol, WebSocketClientProtocol):\n', 'class FuzzingClientProtocol(FuzzingProtocol, WebSocketClientProtocol):\n   _base = WebSocketClientProtocol\n')
s = s.replace('json.dumps(', 'jdumps(').replace("def binLogData(", "def jdumps(o, **k):\n   k['default'] = t\n   return json.dumps(o, **k)\n\ndef binLogData(", 1)
write(f'{package}/fuzzing.py', s)
r = subprocess.run([sys.executable, '-m', 'fissix', '-w', '-n', '--no-diffs', package], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
assert r.returncode == 0, r.stderr
write(f'{out}/wstest3.py', '''import json, sys
from twisted.python import log
from autobahntestsuite import fuzzing
log.addObserver(lambda e: e.get("isError") and print("ERROR", log.textFromEventDict(e), file=sys.stderr))
fuzzing.startClient(json.load(open(sys.argv[1])))
fuzzing.reactor.run()
''')
