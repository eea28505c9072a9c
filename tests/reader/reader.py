#!/usr/bin/python3
"""An independent reader of Helios Mover's repositories.

It was written from docs/repository-format.md alone, without a look at the program, and shares no code with it. So it
keeps the specification honest: what the document says must be enough to get the data back, and what the program
writes must be what the document says. It prefers plain code to speed, and checks what the specification names on the
way to one backup: forms, caps, checksums, seals, hashes. Records (section 12) it does not read.

    reader.py REPO_DIR BACKUP_ID|latest TARGET_DIR [--passphrase-file F | --identity-file F]

It restores a backup from a local directory into an empty or absent one; owners, where it runs as root. An error is
one line that names the object. Exit codes are the program's: 2 usage, 20 target, 30 storage, 32 not found, 40 key,
50 corrupt. Needs Debian's python3-cryptography and python3-zstandard.
"""

import argparse
import base64
import bisect
import functools
import hashlib
import hmac
import json
import os
import re
import struct
import sys
import zlib
from collections import namedtuple
from datetime import datetime, timezone
from types import SimpleNamespace as Entry

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

BLOCK, MIB, LEAF_BLOCKS, FANOUT, MAX_LEAVES = 4096, 1 << 20, 16384, 1024, 1 << 26
DATA_PACK, META_PACK, MANIFEST = 1, 2, 3  # object types
BLOCKS, NODES, DIRECTORY, BODY = 1, 2, 3, 4  # frame kinds
PLAIN_CAP = {BLOCKS: MIB, NODES: MIB, DIRECTORY: 4 * MIB, BODY: 96 * MIB}
PACK_CAP = 1124 + 65536 * 1048608 + 4194336 + 32
LEAF, INTERIOR, PAGE = 1, 2, 3  # node kinds
HOLE, ZEROS, STORED = 0, 1, 2  # run kinds
DIR, FILE, SYMLINK, HARDLINK, FIFO = range(5)  # entry kinds
TIME = r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"
AGE_BODY = r"(?:[A-Za-z0-9+/]{64}\n)*[A-Za-z0-9+/]{0,63}\n"
AGE_STANZA = r"-> [!-~]+(?: [!-~]+)*\n" + AGE_BODY
AGE_HEADER = f"age-encryption\\.org/v1\n((?:{AGE_STANZA})+)---( [A-Za-z0-9+/]{{43}}\n)".encode()

PackRow = namedtuple("PackRow", "id kind zeros size offset length blocks sha256")
Reference = namedtuple("Reference", "name pack frame offset length")


class Refused(Exception):
    """Ends the program with an exit code and one line."""

    def __init__(self, code, name, why):
        super().__init__(f"{name}: {why}")
        self.code = code


def corrupt(name, why):
    return Refused(50, name, f"corrupt: {why}")


def need(condition, name, why):
    if not condition:
        raise corrupt(name, why)


def hkdf(key, salt, info):
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def sha256(data):
    return hashlib.sha256(data).digest()


def check_crc(name, data):
    need(zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little"), name, "CRC-32 differs")


class Cursor:
    """Takes fields off the front of a structure (section 1)."""

    def __init__(self, name, data):
        self.name, self.data, self.at = name, data, 0

    def need(self, condition, why):
        need(condition, self.name, f"{why}, before byte {self.at} of {len(self.data)}")

    def take(self, count):
        self.need(count <= len(self.data) - self.at, "ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def fields(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def uint(self, width):
        return int.from_bytes(self.take(width), "little")

    def varint(self):
        value = 0
        for place in range(10):
            byte = self.uint(1)
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                self.need(place == 0 or byte != 0, "a varint is not in its shortest form")
                break
        self.need(byte < 0x80 and value < 1 << 64, "a varint is above 64 bits")
        return value

    def zigzag(self):
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def bounded(self, low, high, what, width=0):
        """A varint, or an integer of `width` bytes, within bounds."""
        value = self.uint(width) if width else self.varint()
        self.need(low <= value <= high, f"{what} {value} is out of bounds")
        return value

    def string(self, low, high, what):
        return self.take(self.bounded(low, high, f"length of {what}"))

    def end(self):
        self.need(self.at == len(self.data), "bytes are left over")


def parse_json(name, data, **patterns):
    """A JSON object; the members named must be texts that match. Others are passed over."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise corrupt(name, "JSON cannot be read") from None
    need(isinstance(value, dict), name, "JSON is no object")
    for member, pattern in patterns.items():
        text = value.get(member)
        need(isinstance(text, str) and re.fullmatch(pattern, text), name, f"member {member} is wrong or absent")
    return value


# --- age-encryption.org/v1 ---


def bech32(name, text, prefix):
    """The 32 bytes of an age key."""
    letters, (head, _, tail) = "qpzry9x8gf2tvdw0s3jn54khce6mua7l", text.lower().rpartition("1")
    need(head == prefix and len(tail) == 58 and set(tail) <= set(letters), name, "not an age key")
    values, check = [letters.index(c) for c in tail], 1
    for value in [ord(c) >> 5 for c in head] + [0] + [ord(c) & 31 for c in head] + values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, polynomial in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= polynomial if top >> bit & 1 else 0
    number = functools.reduce(lambda total, value: total << 5 | value, values[:-6])
    need(check == 1 and number & 15 == 0, name, "checksum of an age key")
    return (number >> 4).to_bytes(32, "big")


def public_of(identity):
    return identity.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def age_base64(text):
    data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if base64.b64encode(data).decode().rstrip("=") != text:
        raise ValueError("base64 that is not unique")
    return data


def unwrap_x25519(identity, share, body):
    shared = identity.exchange(X25519PublicKey.from_public_bytes(age_base64(share)))
    key = hkdf(shared, age_base64(share) + public_of(identity), b"age-encryption.org/v1/X25519")
    return ChaCha20Poly1305(key).decrypt(bytes(12), body, None)


def unwrap_scrypt(passphrase, salt, work, body):
    if len(age_base64(salt)) != 16 or not re.fullmatch("[1-9]|1[0-7]", work):
        raise ValueError("scrypt salt or work factor")
    salt, n = b"age-encryption.org/v1/scrypt" + age_base64(salt), 1 << int(work)
    key = hashlib.scrypt(passphrase, salt=salt, n=n, r=8, p=1, maxmem=n * 1024 + MIB, dklen=32)
    return ChaCha20Poly1305(key).decrypt(bytes(12), body, None)


def age_open(name, data, kind, secrets):
    """The plain bytes of an age file with one stanza of `kind`; None if no secret opens it."""
    try:
        header = re.match(AGE_HEADER, data)
        need(header, name, "no age file")
        stanzas = [s[3:].split("\n", 1) for s in re.findall(AGE_STANZA, header[1].decode())]
        known = [s for s in stanzas if s[0].split()[0] in ("X25519", "scrypt")]
        need(len(known) == 1 and known[0][0].startswith(kind), name, f"not one {kind} stanza in the age file")
        body, unwrap = age_base64(known[0][1].replace("\n", "")), unwrap_x25519 if kind == "X25519" else unwrap_scrypt
        for secret in secrets:
            try:
                file_key = unwrap(secret, *known[0][0].split()[1:], body)
            except InvalidTag:
                continue
            sealed, mac = data[: header.start(2)], age_base64(header[2].decode().strip())
            right = hmac.digest(hkdf(file_key, None, b"header"), sealed, "sha256")
            need(hmac.compare_digest(right, mac), name, "MAC of the age header differs")
            return age_payload(file_key, data[header.end() :])
    except (ValueError, TypeError, InvalidTag) as error:
        raise corrupt(name, f"age file: {error or 'seal differs'}") from None
    return None


def age_payload(file_key, payload):
    """At most one chunk of 64 KiB: what a repository seals with age is short."""
    if len(payload) < 32 or len(payload) > 16 + 65536 + 16:
        raise ValueError("length of the payload")
    cipher = ChaCha20Poly1305(hkdf(file_key, payload[:16], b"payload"))
    return cipher.decrypt(bytes(11) + b"\1", payload[16:], None)


# --- frames (section 5) and trailers (section 6) ---


def check_zstd(name, data, length):
    """Exactly one frame: content size given, no dictionary, no checksum, a window of at most 8 MiB."""
    cursor = Cursor(name, data)
    cursor.need(cursor.take(4) == b"\x28\xb5\x2f\xfd", "no zstd frame")
    descriptor = cursor.uint(1)
    single = descriptor >> 5 & 1
    cursor.need(descriptor & 0b1111 == 0, "zstd frame with a reserved bit, a checksum or a dictionary")
    if not single:
        window = cursor.uint(1)
        base = 1 << (10 + (window >> 3))
        cursor.need(base + base // 8 * (window & 7) <= 8 * MIB, "zstd window above 8 MiB")
    width = (single, 2, 4, 8)[descriptor >> 6]
    cursor.need(width > 0, "zstd frame without content size")
    cursor.need(cursor.uint(width) + (256 if width == 2 else 0) == length, "zstd content size differs")
    last = 0
    while not last:
        block = cursor.uint(3)
        last, kind = block & 1, block >> 1 & 3
        cursor.need(kind != 3, "zstd block of a reserved kind")
        cursor.take(1 if kind == 1 else block >> 3)
    cursor.end()


def open_frame(name, stored, kind, piece, seal):
    """The plain bytes of a stored frame; `seal` opens a payload, or is None with cipher 0."""
    head = Cursor(name, stored)
    payload_length, length, kind_found, codec, last, zero, crc = head.fields("IIBBBBI")
    known = kind_found == kind and codec <= 1 and last == (kind >= DIRECTORY) and zero == 0
    head.need(known, f"kind, codec or flag of piece {piece}")
    head.need(1 <= length <= PLAIN_CAP[kind] and (kind != BLOCKS or length % BLOCK == 0), "plain length")
    encoded_length = payload_length - (16 if seal else 0)
    head.need(encoded_length == length if codec == 0 else 0 < encoded_length < length, "payload length")
    payload = head.take(payload_length)
    head.end()
    head.need(zlib.crc32(payload, zlib.crc32(stored[:12])) == crc, f"CRC-32 of piece {piece} differs")
    if seal:
        payload = seal(piece, stored[:12], payload)
    if codec == 0:
        return payload
    check_zstd(name, payload, length)
    try:
        plain = zstandard.ZstdDecompressor().decompress(payload, max_output_size=length)
    except zstandard.ZstdError as error:
        raise corrupt(name, f"zstd data of piece {piece}: {error}") from None
    need(len(plain) == length, name, f"zstd data of piece {piece} has another length")
    return plain


def read_trailer(name, data, size, magic):
    """Offset, stored length and piece index of the last frame."""
    offset, length, piece, found, zero, _ = struct.unpack("<QII8sII", data)
    need(found == magic and zero == 0, name, "wrong trailer")
    check_crc(name, data)
    need(offset + length + 32 == size, name, "trailer and length of the object differ")
    return offset, length, piece


# --- repository, keys, preambles (sections 2, 3, 4, 10, 11) ---


def object_id_of(backup_id):
    """The 16 bytes of a backup id; None if it is none."""
    if not re.fullmatch("[0-9]{8}-[0-9]{6}-[0-9a-f]{8}", backup_id):
        return None
    try:
        start = datetime.strptime(backup_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=timezone.utc)
        return struct.pack(">QII", int(start.timestamp()), 0, int(backup_id[16:], 16))
    except (ValueError, struct.error):
        return None


class Repository:
    def __init__(self, root, passphrases, identities):
        self.root, self.sessions = root, {}
        self.read_config()
        if self.sealed:
            self.identity, self.master_key = self.open_slots(passphrases, identities)

    def read(self, name, offset=0, length=-1, cap=None):
        """Bytes of an object, all of them or a part."""
        try:
            with open(os.path.join(self.root, name), "rb") as file:
                need(cap is None or os.fstat(file.fileno()).st_size <= cap, name, "longer than its cap")
                file.seek(offset)
                data = file.read(length)
        except FileNotFoundError:
            raise Refused(32 if name == "config" or name.startswith("backups/") else 50, name, "is missing") from None
        except OSError as error:
            raise Refused(30, name, error.strerror) from None
        need(length in (-1, len(data)), name, "ends too early")
        return data

    def names(self, prefix, pattern):
        """The names of objects below a prefix in order; others are told and passed over."""
        path = os.path.join(self.root, prefix)
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        for stray in (name for name in names if not re.fullmatch(pattern, name)):
            print(f"note: {prefix}/{stray!a}: not an object, passed over", file=sys.stderr)
        return [name for name in names if re.fullmatch(pattern, name)]

    def read_config(self):
        line, _, rest = self.read("config", cap=64 << 10).partition(b"\n")
        self.hash = sha256(line)
        need(rest == b"sha256 " + self.hash.hex().encode() + b"\n", "config", "SHA-256 differs")
        need(parse_json("config", line).get("format") == 1, "config", "unknown format")
        config = parse_json("config", line, repository_id="[0-9a-f]{32}", created=TIME, cipher="aes-256-gcm|none")
        self.id = bytes.fromhex(config["repository_id"])
        self.sealed, recipient = config["cipher"] != "none", config.get("recipient")
        need(isinstance(recipient, str if self.sealed else type(None)), "config", "wrong recipient")
        self.recipient = bech32("config", recipient, "age") if self.sealed else None

    def read_slot(self, name):
        """Kind and age file of a key slot."""
        data = self.read(name, cap=16742)
        cursor = Cursor(name, data)
        magic, version, kind, zero, length, repository, slot, time, config, zeros = cursor.fields(
            "8sHBBI16s16sQ32s8s")
        cursor.need(magic == b"HELIOSKS" and version == 1 and kind in (1, 2), "wrong magic, version or kind")
        cursor.need(zero == 0 and not any(zeros) and time < 1 << 63, "reserved bytes or time")
        cursor.need(1 <= length <= 16384, "length of the age file")
        label = cursor.take(cursor.bounded(0, 256, "length of the label", 2))
        age = cursor.take(length)
        cursor.take(4)
        cursor.end()
        check_crc(name, data)
        cursor.need(slot.hex() == name.removeprefix("keys/"), "slot id is not that of the name")
        cursor.need(repository == self.id and config == self.hash, "made for another repository or config")
        text = label.decode("utf-8", "replace")
        controls = any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
        cursor.need(text.encode() == label and not controls, "the label is not UTF-8 without control characters")
        return kind, age

    def open_slot(self, name, passphrases, identities):
        """Repository identity and master key, or None if the slot is for another key."""
        kind, age = self.read_slot(name)
        plain = age_open(name, age, ("scrypt", "X25519")[kind - 1], passphrases if kind == 1 else identities)
        if plain is None:
            return None
        secrets = parse_json(name, plain, repository_id=self.id.hex(), config_sha256=self.hash.hex(),
                             identity="AGE-SECRET-KEY-1[A-Z0-9-]{1,240}", master_key="[0-9a-f]{64}")
        need(len(secrets) == 4 and b"\\" not in plain, name, "other members or escapes")
        identity = X25519PrivateKey.from_private_bytes(bech32(name, secrets["identity"], "age-secret-key-"))
        need(public_of(identity) == self.recipient, name, "the identity is not that of the config's recipient")
        return identity, bytes.fromhex(secrets["master_key"])

    def open_slots(self, passphrases, identities):
        """A damaged slot counts for nothing, but is told."""
        damage = []
        for slot in self.names("keys", "[0-9a-f]{32}")[:1000]:
            try:
                secrets = self.open_slot(f"keys/{slot}", passphrases, identities)
            except Refused as error:
                damage.append(error)
                continue
            if secrets:
                for error in damage:
                    print(f"warning: {error}", file=sys.stderr)
                return secrets
        raise damage[0] if damage else Refused(40, "keys", "no slot can be opened with the key given")

    def session_key(self, name, wrapped, session_id):
        """The session key in an object's preamble, its tag checked (section 3)."""
        if (wrapped, session_id) in self.sessions:
            return self.sessions[wrapped, session_id]
        plain = age_open(name, wrapped, "X25519", [self.identity])
        need(plain and len(plain) == 64, name, "wrapped key: for another identity, or of a wrong length")
        key, tag = plain[:32], plain[32:]
        right = hmac.digest(self.master_key, b"helios-mover v1 session" + self.id + session_id + key, "sha256")
        if not any(tag):
            print(f"note: {name}: whoever knows the recipient may have written this session", file=sys.stderr)
        else:
            need(hmac.compare_digest(tag, right), name, "the session's tag differs")
        self.sessions[wrapped, session_id] = key
        return key

    def preamble(self, name, kind, object_id):
        """Its length, and what opens the seals of the object's pieces."""
        head = self.read(name, 0, 96)
        magic, version, kind_found, cipher, length, repository, found, session_id, zeros = struct.unpack(
            "<8sHBBI16s16s16s32s", head)
        need(magic == b"HELIOSMV" and version == 1, name, "wrong magic or version")
        need((kind_found, found) == (kind, object_id), name, "type or object id is not that of the name")
        need((repository, cipher) == (self.id, self.sealed), name, "repository or cipher is not that of config")
        need(1 <= length <= 1024 if self.sealed else length == 0, name, "length of the wrapped key")
        need(not any(zeros), name, "a reserved byte is not zero")
        data = self.read(name, 0, 100 + length)
        check_crc(name, data)
        if not self.sealed:
            return len(data), None
        session_key = self.session_key(name, data[96:-4], session_id)
        cipher = AESGCM(hkdf(session_key, self.id, b"helios-mover v1 object" + bytes([kind]) + object_id))

        def seal(piece, header, payload):
            nonce, associated = struct.pack("<IQ", 0, piece), head[:64] + struct.pack("<I", piece) + header
            try:
                return cipher.decrypt(nonce, payload, associated)
            except InvalidTag:
                raise corrupt(name, f"seal of piece {piece} differs") from None

        return len(data), seal


# --- packs (section 6) ---


class Pack:
    def __init__(self, repository, row):
        self.repository, self.row, self.name = repository, row, f"packs/{row.id.hex()[:2]}/{row.id.hex()}"
        start, self.seal = repository.preamble(self.name, row.kind, row.id)
        size = os.stat(os.path.join(repository.root, self.name)).st_size
        need(size == row.size, self.name, "length is not that in the manifest")
        offset, length, piece = read_trailer(self.name, repository.read(self.name, size - 32, 32), size, b"HMVPKEND")
        need((offset, length) == (row.offset, row.length), self.name, "directory is not where the manifest says")
        need(1 <= piece <= 65536, self.name, "piece index of the directory")
        stored = repository.read(self.name, offset, length)
        need(sha256(stored) == row.sha256, self.name, "SHA-256 of the directory is not that in the manifest")
        plain = open_frame(self.name, stored, DIRECTORY, piece, self.seal)
        self.read_directory(Cursor(self.name, plain), start, piece)
        self.frame = functools.lru_cache(maxsize=4)(self.read_frame)

    def read_directory(self, cursor, at, piece):
        count, blocks = cursor.bounded(1, 65536, "frame count", 4), cursor.bounded(0, 65536, "block count", 4)
        cursor.need((count, blocks) == (piece, self.row.blocks), "counts of trailer, directory and manifest differ")
        cursor.need(len(cursor.data) == 8 + 16 * count + 32 * blocks, "length of the directory")
        self.frames, self.firsts, total = [], [], 0
        for _ in range(count):
            offset, stored, length = cursor.fields("QII")
            cursor.need(offset == at, "frames do not follow each other")
            cursor.need(1 <= length <= MIB and 16 < stored <= length + 32, "length of a frame")
            cursor.need(self.row.kind == META_PACK or length % BLOCK == 0, "a frame is no multiple of a block")
            self.frames.append((offset, stored, length))
            self.firsts.append(total // BLOCK)
            at, total = offset + stored, total + length
        cursor.need(at == self.row.offset, "the directory does not follow the frames")
        cursor.need(blocks == (total // BLOCK if self.row.kind == DATA_PACK else 0), "block count")
        self.hashes = [cursor.take(32) for _ in range(blocks)]

    def read_frame(self, index):
        offset, stored, length = self.frames[index]
        data = self.repository.read(self.name, offset, stored)
        plain = open_frame(self.name, data, BLOCKS if self.row.kind == DATA_PACK else NODES, index, self.seal)
        need(len(plain) == length, self.name, f"plain length of frame {index} is not that in the directory")
        return plain

    def block(self, ordinal):
        need(ordinal < self.row.blocks, self.name, f"there is no block {ordinal}")
        index = bisect.bisect_right(self.firsts, ordinal) - 1
        at = (ordinal - self.firsts[index]) * BLOCK
        block = self.frame(index)[at : at + BLOCK]
        need(sha256(block) == self.hashes[ordinal], self.name, f"SHA-256 of block {ordinal} differs")
        return block


# --- map nodes and entry pages (sections 7 and 8) ---


def read_child(cursor):
    """A node held inline, or a reference to one."""
    if cursor.bounded(0, 1, "tag of a child", 1) == 0:
        return cursor.string(1, 192, "an inline node")
    child = Reference._make(cursor.fields("32s16sIII"))
    cursor.need(child.frame < 65536 and child.length > 192 and child.offset + child.length <= MIB, "a node reference")
    return child


def read_leaf(cursor, blocks):
    """Runs as (kind, count, pack id, ordinal)."""
    packs = [cursor.take(16) for _ in range(cursor.bounded(0, 16384, "pack count"))]
    cursor.need(len(set(packs)) == len(packs), "a pack id stands twice in a leaf")
    runs, behind, last = [], [], None  # behind: the ordinal expected of each pack; last: how the last run could go on
    for _ in range(cursor.bounded(1, 16384, "run count")):
        head = cursor.varint()
        kind, count, index, ordinal = head & 3, head >> 2, None, 0
        cursor.need(kind <= STORED and 1 <= count <= LEAF_BLOCKS, "kind or count of a run")
        if kind == STORED:
            index = cursor.bounded(0, min(len(behind), len(packs) - 1), "pack index")
            behind += [0] if index == len(behind) else []
            ordinal = behind[index] + cursor.zigzag()
            cursor.need(0 <= ordinal and ordinal + count <= 65536, "ordinal of a run")
            behind[index] = ordinal + count
        cursor.need((kind, index, ordinal) != last, "two runs could be one")
        last = (kind, index, ordinal + count if kind == STORED else 0)
        runs.append((kind, count, packs[index] if kind == STORED else None, ordinal))
    cursor.end()
    cursor.need(len(behind) == len(packs), "a pack of a leaf is not used")
    cursor.need(sum(run[1] for run in runs) == blocks, "a leaf does not cover its blocks")
    return runs


def safe_path(path):
    parts = path.split(b"/")
    return b"\0" not in path and all(1 <= len(part) <= 255 and part not in (b".", b"..") for part in parts)


def read_entry(cursor):
    entry = Entry(path=cursor.string(0, 4095, "a path"), kind=cursor.bounded(DIR, FIFO, "kind of an entry", 1))
    cursor.need(safe_path(entry.path) if entry.path else entry.kind == DIR, "a path is not safe")
    entry.mode = cursor.bounded(0, 0o7777, "mode")
    entry.owner, entry.group = (cursor.bounded(0, (1 << 32) - 1, "owner or group") for _ in range(2))
    entry.mtime = cursor.zigzag() * 10**9
    entry.mtime += cursor.bounded(0, 10**9 - 1, "nanoseconds")
    entry.attributes, entry.length = [], 0
    for _ in range(cursor.bounded(0, 1024, "count of attributes")):
        name, value = cursor.string(1, 255, "an attribute's name"), cursor.string(0, 65536, "an attribute")
        in_order = not entry.attributes or entry.attributes[-1][0] < name
        cursor.need(in_order and b"\0" not in name, "name of an attribute")
        entry.attributes.append((name, value))
    if entry.kind == FILE:
        entry.length = cursor.varint()
        entry.map = read_child(cursor) if entry.length else None
    elif entry.kind in (SYMLINK, HARDLINK):
        entry.target = cursor.string(1, 4095, "a target")
        cursor.need(b"\0" not in entry.target, "NUL in a target")
        cursor.need(entry.kind == SYMLINK or safe_path(entry.target), "target of a hard link")
    return entry


# --- manifest (section 9) ---


class Backup:
    def __init__(self, repository, backup_id):
        self.repository, self.name, self.packs = repository, f"backups/{backup_id}", {}
        self.open_pack = functools.lru_cache(maxsize=32)(Pack)
        data = repository.read(self.name, cap=1124 + 16 + 96 * MIB + 16 + 32)
        start, seal = repository.preamble(self.name, MANIFEST, object_id_of(backup_id))
        offset, _, piece = read_trailer(self.name, data[-32:], len(data), b"HMVMFEND")
        need((offset, piece) == (start, 0), self.name, "the body is not where it should be")
        cursor = Cursor(self.name, open_frame(self.name, data[start:-32], BODY, 0, seal))
        metadata = cursor.take(cursor.bounded(0, MIB, "length of the metadata", 4))
        parse_json(self.name, metadata, backup_id=backup_id, backup_type="full|incremental|differential",
                   started=TIME, ended=TIME, tool_version=".*")
        pages = [read_child(cursor) for _ in range(cursor.bounded(0, MIB, "page count", 4))]
        self.read_pack_list(cursor)
        cursor.end()
        self.entries = [entry for page in pages for entry in self.read_page(page)]
        self.check_tree()

    def read_pack_list(self, cursor):
        last = b""
        for _ in range(cursor.bounded(0, MIB, "pack count", 4)):
            row = PackRow._make(cursor.fields("16sB7sQQII32s"))
            cursor.need(last < row.id, "packs are not in order")
            cursor.need(row.kind in (DATA_PACK, META_PACK) and not any(row.zeros), "type of a pack")
            cursor.need(100 <= row.offset and row.size <= PACK_CAP, "offset or length of a pack")
            cursor.need(row.offset + row.length + 32 == row.size, "directory and length of a pack")
            cursor.need(1 <= row.blocks <= 65536 if row.kind == DATA_PACK else row.blocks == 0, "blocks of a pack")
            self.packs[row.id], last = row, row.id

    def pack(self, pack_id, kind):
        row = self.packs.get(pack_id)
        need(row and row.kind == kind, self.name, f"pack {pack_id.hex()} is not named, or of another type")
        return self.open_pack(self.repository, row)

    def node(self, child):
        """A cursor over a node, wherever it is held; a referenced one is checked against its name."""
        if isinstance(child, bytes):
            return Cursor(self.name, child)
        pack = self.pack(child.pack, META_PACK)
        need(child.frame < len(pack.frames), pack.name, f"there is no frame {child.frame}")
        data = pack.frame(child.frame)[child.offset : child.offset + child.length]
        need(len(data) == child.length, pack.name, f"frame {child.frame} ends within a node")
        need(sha256(data) == child.name, pack.name, f"SHA-256 of node {child.name.hex()} differs")
        return Cursor(pack.name, data)

    def read_page(self, child):
        cursor = self.node(child)
        cursor.need(cursor.uint(1) == PAGE, "not an entry page")
        entries = [read_entry(cursor) for _ in range(cursor.bounded(1, 4096, "entry count"))]
        cursor.end()
        return entries

    def check_tree(self):
        """Order of the entries, what they stand in and link to, and the number of leaves."""
        kinds, last, leaves = {}, None, 0
        for entry in self.entries:
            path = entry.path
            need(last is None or last < path, self.name, f"entry {path!r} is out of order")
            need(not path or kinds.get(path.rpartition(b"/")[0]) == DIR, self.name, f"{path!r} is in no directory")
            linked = entry.kind != HARDLINK or kinds.get(entry.target) == FILE
            need(linked, self.name, f"{path!r} links to no file before it")
            leaves += -(-entry.length // (BLOCK * LEAF_BLOCKS))
            kinds[path], last = entry.kind, path
        need(leaves <= MAX_LEAVES, self.name, "the files' maps have too many leaves")

    def runs(self, child, blocks, level):
        """The runs of a map node that must be of `level` and cover `blocks` blocks."""
        cursor = self.node(child)
        cursor.need(cursor.uint(1) == (INTERIOR if level else LEAF), "a node is not of the level that is implied")
        if level == 0:
            yield from read_leaf(cursor, blocks)
            return
        below = LEAF_BLOCKS * FANOUT ** (level - 1)
        count = -(-blocks // below)
        cursor.need(cursor.uint(1) == level and cursor.varint() == count, "level or child count of a node")
        children = [read_child(cursor) for _ in range(count)]
        cursor.end()
        for number, node in enumerate(children):
            yield from self.runs(node, min(below, blocks - number * below), level - 1)


# --- restoring ---


def write_file(backup, entry, path):
    blocks, level, at = -(-entry.length // BLOCK), 0, 0
    while LEAF_BLOCKS * FANOUT**level < blocks:
        level += 1
    with open(path, "xb") as file:
        for kind, count, pack_id, ordinal in backup.runs(entry.map, blocks, level) if blocks else ():
            file.seek(at)
            for number in range(count if kind != HOLE else 0):
                block = bytes(BLOCK) if kind == ZEROS else backup.pack(pack_id, DATA_PACK).block(ordinal + number)
                room = min(BLOCK, entry.length - file.tell())
                need(not any(block[room:]), backup.name, f"the last block of {entry.path!r} is not filled with zeros")
                file.write(block[:room])
            at += count * BLOCK
        file.truncate(entry.length)


def set_attributes(entry, path):
    """The owner first, since it clears bits of the mode; the time last."""
    if os.geteuid() == 0:
        os.chown(path, entry.owner, entry.group, follow_symlinks=False)
    for name, value in entry.attributes:
        os.setxattr(path, name, value, follow_symlinks=False)
    if entry.kind != SYMLINK:
        os.chmod(path, entry.mode)
    os.utime(path, ns=(entry.mtime, entry.mtime), follow_symlinks=False)


def restore(backup, target):
    os.makedirs(target, exist_ok=True)
    if os.listdir(target):
        raise Refused(20, os.fsdecode(target), "the target is not empty")
    directories = []
    for entry in backup.entries:
        path = os.path.join(target, entry.path) if entry.path else target
        if entry.kind == DIR:
            directories.append((entry, path))
            if entry.path:
                os.mkdir(path, 0o700)
        elif entry.kind == FILE:
            write_file(backup, entry, path)
        elif entry.kind == SYMLINK:
            os.symlink(entry.target, path)
        elif entry.kind == HARDLINK:
            os.link(os.path.join(target, entry.target), path, follow_symlinks=False)
        else:
            os.mkfifo(path, 0o600)
        if entry.kind in (FILE, SYMLINK, FIFO):
            set_attributes(entry, path)
    for entry, path in reversed(directories):
        set_attributes(entry, path)


def read_secrets(arguments):
    """Passphrases and identities, from the lines of the file that was given."""
    path = arguments.passphrase_file or arguments.identity_file
    try:
        with open(path or os.devnull, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise Refused(2, path, error.strerror) from None
    if arguments.passphrase_file:
        return [lines[0].removesuffix(b"\r")], []
    keys = [line.decode("ascii", "replace").strip() for line in lines if line.startswith(b"AGE-SECRET-KEY-")]
    return [], [X25519PrivateKey.from_private_bytes(bech32(path, key, "age-secret-key-")) for key in keys]


def run(arguments):
    repository, backup_id = Repository(arguments.repository, *read_secrets(arguments)), arguments.backup
    if backup_id == "latest":
        backup_id = max(repository.names("backups", "[0-9]{8}-[0-9]{6}-[0-9a-f]{8}"), default="")
    if not object_id_of(backup_id):
        raise Refused(32, "backups", "there is no such backup")
    backup = Backup(repository, backup_id)
    try:
        restore(backup, os.fsencode(arguments.target))
    except OSError as error:
        raise Refused(20, arguments.target, error) from None
    print(f"restored {backup_id}: {len(backup.entries)} entries, {len(backup.packs)} packs")


def main():
    parser = argparse.ArgumentParser(description="Restores a backup by what the specification says.")
    parser.add_argument("repository", metavar="REPO_DIR")
    parser.add_argument("backup", metavar="BACKUP_ID|latest")
    parser.add_argument("target", metavar="TARGET_DIR")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--passphrase-file", metavar="F")
    keys.add_argument("--identity-file", metavar="F")
    try:
        run(parser.parse_args())
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
