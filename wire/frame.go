package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"

	"github.com/pgbridge/pgbridge/origin"
)

const (
	// Version is the highest frame format that this package reads and writes.
	Version = 2
	// MaxBody bounds a frame's body before compression, in bytes. Brokers allow at most 64 MiB.
	MaxBody = 64 << 20

	first     = 1 // the version of frames without sealed records
	magic     = "PGBF"
	flagZstd  = 1 << 0
	flagFence = 1 << 1
)

// ErrCorrupt is wrapped by every error of this package that says that bytes are not what their format
// promises. The data must not be used.
var ErrCorrupt = errors.New("corrupt frame")

// ErrVersion means that a frame was written by a newer pgbridge; upgrade this one first.
var ErrVersion = errors.New("frame of a newer format version")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Mark is a marker of capture: every local transaction id below XID had ended, and had a seq of at most
// Seq if it was captured, when the marker was met in the WAL (PROOF.md F6, R11).
type Mark struct {
	XID uint64 // full transaction id (with its epoch), as pg_snapshot_xmin gives it; 0: none yet
	Seq uint64
}

// Header is what a frame says of itself. Fields are explained in the package comment.
type Header struct {
	Fence           bool
	Sealed          bool // there may be sealed records: the format's version 2
	Cluster         string
	Sender          string
	Origin          origin.Origin
	WriterEpoch     uint64
	FirstSeq        uint64
	LastSeq         uint64
	LastStamp       origin.Stamp
	FirstCommitTime origin.Stamp
	LastCommitTime  origin.Stamp
	Up, Low         origin.Vector
	ResumeLSN       uint64
	Back            uint64
	Mark            Mark
	SystemID        uint64
	Timeline        uint32
	OriginWriter    uint64
	Hops            []string
	Standbys        string
	Signature       []byte // of its author; nil: it is not signed
	Claim           []byte // what is signed, if the frame does not say it; nil: it does
}

// RunWriter is the writer epoch of the bridge that began the frame's runs. A fence says nothing of runs: its epoch is that of its sender,
// who may hand on, or have copied, what stands around it.
func (h *Header) RunWriter() uint64 {
	if h.OriginWriter != 0 {
		return h.OriginWriter
	}
	return h.WriterEpoch
}

// Frame is a header and a list of records. It is not changed once built; who receives it owns it.
type Frame struct {
	Header
	Body []byte // records, not compressed

	whole []byte // the body that was signed, if transactions were taken out of Body
}

// Encoder writes frames. The zero Encoder writes without compression. Not safe for concurrent use.
type Encoder struct {
	// Zstd compresses bodies of at least MinCompress bytes, and keeps the result only if it is smaller
	// by an eighth.
	Zstd bool
	// Signer signs fences, and frames that are not signed yet; nil: frames go as they are.
	Signer *Signer

	z   *zstd.Encoder
	buf []byte
}

// MinCompress is the smallest body, in bytes, that an Encoder tries to compress.
const MinCompress = 512

// Append appends the encoded frame to dst and returns the result.
func (e *Encoder) Append(dst []byte, f *Frame) ([]byte, error) {
	if len(f.Body) > MaxBody {
		return dst, fmt.Errorf("frame body of %d bytes, the format allows %d", len(f.Body), MaxBody)
	}
	if e.Signer != nil && (f.Signature == nil || f.Fence) {
		own := *f
		e.Signer.sign(&own)
		f = &own
	}
	body := f.Body
	if f.whole != nil {
		body = f.whole
	}
	start := len(dst)
	stored, flags, version := body, byte(0), byte(first)
	if f.Sealed {
		version = Version
	}
	if f.Fence {
		flags |= flagFence
	}
	if e.Zstd && len(body) >= MinCompress {
		if e.z == nil {
			z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
			if err != nil {
				return dst, fmt.Errorf("zstd: %w", err)
			}
			e.z = z
		}
		e.buf = e.z.EncodeAll(body, e.buf[:0])
		if len(e.buf) < len(body)-len(body)/8 {
			stored, flags = e.buf, flags|flagZstd
		}
	}
	dst = append(dst, magic...)
	dst = append(dst, version, flags)
	hdr := f.Header.append(make([]byte, 0, 256), f.along())
	dst = binary.AppendUvarint(dst, uint64(len(hdr)))
	dst = append(dst, hdr...)
	dst = binary.AppendUvarint(dst, uint64(len(body)))
	dst = binary.AppendUvarint(dst, uint64(len(stored)))
	dst = append(dst, stored...)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli)), nil
}

// append appends the header, and if it is signed what its author has said, unless it says that itself.
func (h *Header) append(b, claim []byte) []byte {
	b = appendString(b, h.Cluster)
	b = appendString(b, h.Sender)
	b = appendOrigin(b, h.Origin)
	b = binary.AppendUvarint(b, h.WriterEpoch)
	b = binary.AppendUvarint(b, h.FirstSeq)
	b = binary.AppendUvarint(b, h.LastSeq)
	b = binary.AppendVarint(b, int64(h.LastStamp))
	b = binary.AppendVarint(b, int64(h.FirstCommitTime))
	b = binary.AppendVarint(b, int64(h.LastCommitTime))
	b = appendVector(b, h.Up)
	b = appendVector(b, h.Low)
	b = binary.AppendUvarint(b, h.ResumeLSN)
	b = binary.AppendUvarint(b, h.Back)
	b = binary.AppendUvarint(b, h.Mark.XID)
	b = binary.AppendUvarint(b, h.Mark.Seq)
	b = binary.AppendUvarint(b, h.SystemID)
	b = binary.AppendUvarint(b, uint64(h.Timeline))
	if h.OriginWriter == 0 && len(h.Hops) == 0 && h.Standbys == "" && h.Signature == nil {
		return b
	}
	b = binary.AppendUvarint(b, h.OriginWriter)
	b = binary.AppendUvarint(b, uint64(len(h.Hops)))
	for _, node := range h.Hops {
		b = appendString(b, node)
	}
	if h.Standbys == "" && h.Signature == nil {
		return b
	}
	b = appendString(b, h.Standbys)
	if h.Signature == nil {
		return b
	}
	return appendString(appendString(b, string(h.Signature)), string(claim))
}

// Decoder reads frames. The zero Decoder is ready to use. Not safe for concurrent use.
type Decoder struct {
	z *zstd.Decoder
}

// Decode checks and decodes one frame. The body of an uncompressed frame shares memory with data. The
// errors wrap ErrCorrupt or ErrVersion.
func (d *Decoder) Decode(data []byte) (*Frame, error) {
	if len(data) < len(magic)+2+4 || string(data[:4]) != magic {
		return nil, fmt.Errorf("%w: no frame begins here", ErrCorrupt)
	}
	if data[4] < first || data[4] > Version || data[5]&^(flagZstd|flagFence) != 0 {
		return nil, fmt.Errorf("%w: version %d, flags %#x; this pgbridge reads versions up to %d: upgrade it",
			ErrVersion, data[4], data[5], Version)
	}
	end := len(data) - 4
	if got, want := crc32.Checksum(data[:end], castagnoli), binary.BigEndian.Uint32(data[end:]); got != want {
		return nil, fmt.Errorf("%w: checksum %08x, its bytes give %08x", ErrCorrupt, want, got)
	}
	p := parser{b: data[6:end]}
	f := &Frame{}
	f.parse(parser{b: p.bytes(p.length())}, &p)
	size := p.uvarint()
	stored := p.bytes(p.length())
	if p.err == nil && len(p.b) != 0 {
		p.fail("bytes behind the body")
	}
	if p.err != nil {
		return nil, p.err
	}
	f.Fence, f.Sealed = data[5]&flagFence != 0, data[4] > first
	if data[5]&flagZstd == 0 {
		if uint64(len(stored)) != size {
			return nil, fmt.Errorf("%w: body of %d bytes, %d stored", ErrCorrupt, size, len(stored))
		}
		f.Body = stored
	} else {
		var err error
		if f.Body, err = d.inflate(stored, size); err != nil {
			return f, err
		}
	}
	return f, f.heed()
}

func (d *Decoder) inflate(stored []byte, size uint64) ([]byte, error) {
	if size > MaxBody {
		return nil, fmt.Errorf("%w: body of %d bytes, the format allows %d", ErrCorrupt, size, MaxBody)
	}
	if d.z == nil {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBody))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		d.z = z
	}
	// A lying size costs at most what the stored bytes could honestly hold; append grows it as needed.
	body, err := d.z.DecodeAll(stored, make([]byte, 0, min(size, uint64(len(stored))*16)))
	if err != nil || uint64(len(body)) != size {
		return nil, fmt.Errorf("%w: body inflates to %d bytes instead of %d: %v", ErrCorrupt, len(body), size, err)
	}
	return body, nil
}

func (h *Header) parse(p parser, outer *parser) {
	h.Cluster = p.string()
	h.Sender = p.string()
	h.Origin = p.origin()
	h.WriterEpoch = p.uvarint()
	h.FirstSeq = p.uvarint()
	h.LastSeq = p.uvarint()
	h.LastStamp = origin.Stamp(p.varint())
	h.FirstCommitTime = origin.Stamp(p.varint())
	h.LastCommitTime = origin.Stamp(p.varint())
	h.Up = p.vector()
	h.Low = p.vector()
	h.ResumeLSN = p.uvarint()
	h.Back = p.uvarint()
	h.Mark.XID = p.uvarint()
	h.Mark.Seq = p.uvarint()
	h.SystemID = p.uvarint()
	h.Timeline = p.uint32()
	if len(p.b) > 0 {
		h.OriginWriter = p.uvarint()
		for n := p.length(); n > 0 && p.err == nil; n-- {
			h.Hops = append(h.Hops, p.string())
		}
	}
	if len(p.b) > 0 {
		h.Standbys = p.string()
	}
	if len(p.b) > 0 {
		signature, claim := p.bytes(p.length()), p.bytes(p.length())
		if len(signature) > 0 {
			h.Signature = signature
		}
		if len(signature) > 0 && len(claim) > 0 {
			h.Claim = claim
		}
	}
	if outer.err == nil {
		outer.err = p.err
	}
}
