package wire

import (
	"bufio"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/pgbridge/pgbridge/origin"
)

// Rows of tables that only some nodes have stand in frames as they are, or sealed for these nodes: then whoever hands the frame on cannot
// read them. A sealed record (KindSealed) holds a piece of a list of records; the pieces of one origin that follow each other go on in each
// other, so that a row of any size is sealed as it comes. Of columns of which only some nodes have the values, the single values are sealed:
// everybody must see that there is a row, and which one.

const (
	// SealKeyBytes is the length of a key.
	SealKeyBytes = chacha20poly1305.KeySize
	// SealPrefixBytes is how much chance a Sealer wants for its nonces.
	SealPrefixBytes = chacha20poly1305.NonceSizeX - 8
	// SealPiece is how many bytes a Sealer seals at once, at most.
	SealPiece = 64 << 10
	// maxSealedPiece bounds what is opened at once.
	maxSealedPiece = 1 << 20
)

// SealedPart says, to those who cannot open it, what a sealed record is.
type SealedPart byte

// The parts.
const (
	SealedRelation SealedPart = iota // descriptions of relations, which later records in the frame may need
	SealedChange                     // a change, or its beginning
	SealedRest                       // more of the change before
	SealedOther                      // what is no part of a transaction

	// Values of tuples are sealed each by itself, and are no records.
	sealedText
	sealedBinary
)

// ErrSealed means that rows are sealed for this node, and that no key opens them that it has.
var ErrSealed = errors.New("rows are sealed")

// Group is the name of the nodes that may open a record: in the order of names, divided by spaces.
func Group(nodes []string) string {
	sorted := slices.Sorted(slices.Values(nodes))
	return strings.Join(slices.Compact(sorted), " ")
}

// keyID tells keys of one group apart. It says nothing of the key.
func keyID(key []byte) uint64 {
	h := sha256.Sum256(append([]byte("pgbridge sealing key\x00"), key...))
	return binary.BigEndian.Uint64(h[:])
}

// Sealer seals what one origin writes for one group, with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03; RFC 8439). Not safe for
// concurrent use.
type Sealer struct {
	group  string
	id     uint64
	aead   cipher.AEAD
	author origin.Origin
	nonce  [chacha20poly1305.NonceSizeX]byte
	n      uint64
	head   []byte
}

// NewSealer returns a Sealer. prefix is SealPrefixBytes of chance, other ones each time: with the number of the piece they are a nonce
// that is used once.
func NewSealer(author origin.Origin, group string, key, prefix []byte) (*Sealer, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	if len(prefix) != SealPrefixBytes {
		return nil, fmt.Errorf("nonces begin with %d bytes, not %d", SealPrefixBytes, len(prefix))
	}
	s := &Sealer{group: group, id: keyID(key), aead: aead, author: author}
	copy(s.nonce[:], prefix)
	return s, nil
}

// Append appends sealed records that hold plain, a piece of a list of records.
func (s *Sealer) Append(dst []byte, part SealedPart, plain []byte) []byte {
	for {
		n := min(len(plain), SealPiece)
		dst = s.piece(dst, part, plain[:n])
		if plain = plain[n:]; len(plain) == 0 {
			return dst
		}
		if part == SealedChange {
			part = SealedRest
		}
	}
}

func (s *Sealer) piece(dst []byte, part SealedPart, plain []byte) []byte {
	size := s.next(part) + len(plain)
	dst = binary.AppendUvarint(append(dst, byte(KindSealed)), uint64(size))
	return s.seal(dst, plain)
}

// next makes ready for a piece, and returns how much longer it becomes.
func (s *Sealer) next(part SealedPart) int {
	s.n++
	binary.BigEndian.PutUint64(s.nonce[SealPrefixBytes:], s.n)
	s.head = append(s.head[:0], byte(part))
	s.head = binary.BigEndian.AppendUint64(appendString(s.head, s.group), s.id)
	return len(s.head) + len(s.nonce) + s.aead.Overhead()
}

func (s *Sealer) seal(dst, plain []byte) []byte {
	dst = append(append(dst, s.head...), s.nonce[:]...)
	return s.aead.Seal(dst, s.nonce[:], plain, appendOrigin(s.head, s.author))
}

// Value seals a value of a tuple. NULL, and what an update left unchanged, stay as they are.
func (s *Sealer) Value(v Value) Value {
	part := sealedText
	switch v.Format {
	case Text:
	case Binary:
		part = sealedBinary
	default:
		return v
	}
	return Value{Sealed, s.seal(make([]byte, 0, s.next(part)+len(v.Data)), v.Data)}
}

// SealedPartOf returns what a sealed record is.
func SealedPartOf(payload []byte) (SealedPart, error) {
	p := parser{b: payload}
	part := SealedPart(p.byte())
	if part > SealedOther {
		p.fail("unknown part of a sealed record")
	}
	return part, p.err
}

// Opener opens what is sealed for a node; nil opens nothing. It does not change once built, and is safe for concurrent use.
type Opener struct {
	node string
	keys map[uint64]cipher.AEAD
}

// NewOpener returns an Opener of a node that has these keys.
func NewOpener(node string, keys [][]byte) (*Opener, error) {
	o := &Opener{node: node, keys: map[uint64]cipher.AEAD{}}
	for _, key := range keys {
		aead, err := chacha20poly1305.NewX(key)
		if err != nil {
			return nil, err
		}
		o.keys[keyID(key)] = aead
	}
	return o, nil
}

// Open appends to dst what a sealed record of an author holds; nothing if it is not for this node. Errors wrap ErrCorrupt or ErrSealed.
func (o *Opener) Open(dst []byte, author origin.Origin, payload []byte) ([]byte, error) {
	x, err := readSealed(payload)
	if err == nil && x.part > SealedOther {
		err = fmt.Errorf("%w: unknown part of a sealed record", ErrCorrupt)
	}
	if err == nil && len(x.text) > maxSealedPiece {
		err = fmt.Errorf("%w: a sealed piece of %d bytes", ErrCorrupt, len(x.text))
	}
	if err != nil {
		return dst, err
	}
	out, _, err := o.open(dst, author, &x)
	return out, err
}

// Value opens a value that an author has sealed; NULL if it is not for this node. Other values are returned as they are. Errors wrap ErrCorrupt
// or ErrSealed.
func (o *Opener) Value(author origin.Origin, v Value) (Value, error) {
	if v.Format != Sealed {
		return v, nil
	}
	x, err := readSealed(v.Data)
	opened := Value{Format: Text}
	switch {
	case err != nil:
		return v, err
	case x.part == sealedBinary:
		opened.Format = Binary
	case x.part != sealedText:
		return v, fmt.Errorf("%w: unknown part of a sealed value", ErrCorrupt)
	}
	var ours bool
	if opened.Data, ours, err = o.open([]byte{}, author, &x); err != nil {
		return v, err
	}
	if !ours {
		return Value{Format: Null}, nil
	}
	return opened, nil
}

// sealedPiece is what a Sealer has made, taken apart.
type sealedPiece struct {
	part              SealedPart
	group             string
	id                uint64
	head, nonce, text []byte
}

func readSealed(b []byte) (x sealedPiece, err error) {
	p := parser{b: b}
	x.part = SealedPart(p.byte())
	x.group = p.string()
	x.id = p.fixed64()
	x.head = b[:len(b)-len(p.b)]
	x.nonce = p.bytes(chacha20poly1305.NonceSizeX)
	x.text = p.b
	return x, p.err
}

// open appends what a piece holds to dst; nothing if it is not ours.
func (o *Opener) open(dst []byte, author origin.Origin, x *sealedPiece) (_ []byte, ours bool, err error) {
	if o == nil {
		return dst, false, fmt.Errorf("%w, and nothing opens any here", ErrSealed)
	}
	if !slices.Contains(strings.Fields(x.group), o.node) {
		return dst, false, nil
	}
	aead := o.keys[x.id]
	if aead == nil {
		return dst, false, fmt.Errorf("%w for the nodes %s with a key that is not here", ErrSealed, x.group)
	}
	// Open makes room for what it adds, and no more: the next one would have all moved again.
	out, err := aead.Open(slices.Grow(dst, len(x.text)), x.nonce, x.text, appendOrigin(slices.Clone(x.head), author))
	if err != nil {
		return dst, false, fmt.Errorf("%w: what is sealed is not as its author has written it", ErrCorrupt)
	}
	return out, true, nil
}

// Frame returns the body of a frame, as Body does. One that says that nothing in it is sealed is not looked through.
func (o *Opener) Frame(f *Frame) ([]byte, error) {
	if !f.Sealed {
		return f.Body, nil
	}
	return o.Body(f.Origin, f.Body)
}

// Body returns a frame's body with what is sealed for this node opened, and without what is sealed for others. A body without sealed
// records is returned as it is. Errors wrap ErrCorrupt or ErrSealed.
func (o *Opener) Body(author origin.Origin, body []byte) ([]byte, error) {
	var out []byte
	opened := false
	recs := NewRecords(body)
	for {
		rest := recs.Rest()
		rec, err := recs.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if rec.Kind != KindSealed {
			if opened {
				out = append(out, rest[:len(rest)-len(recs.Rest())]...)
			}
			continue
		}
		if !opened {
			opened, out = true, append(out, body[:len(body)-len(rest)]...)
		}
		if out, err = o.Open(out, author, rec.Payload); err != nil {
			return nil, err
		}
	}
	if !opened {
		return body, nil
	}
	if len(out) > MaxBody {
		return nil, fmt.Errorf("%w: body of %d bytes, the format allows %d", ErrCorrupt, len(out), MaxBody)
	}
	return out, nil
}

// OpenedRun reads a run's records as they were before they were sealed. It holds one piece at a time.
type OpenedRun struct {
	o      *Opener
	author origin.Origin
	in     *bufio.Reader
	left   uint64 // of the record that is being passed on
	head   []byte // of it, or what was opened
	at     int    // in head
	buf    []byte
}

// NewOpenedRun returns a reader of a run's bytes.
func (o *Opener) NewOpenedRun(author origin.Origin, in *bufio.Reader) *OpenedRun {
	return &OpenedRun{o: o, author: author, in: in}
}

// Read implements io.Reader. Errors wrap ErrCorrupt or ErrSealed, or are those of what it reads from.
func (r *OpenedRun) Read(b []byte) (int, error) {
	for {
		if r.at < len(r.head) {
			n := copy(b, r.head[r.at:])
			r.at += n
			return n, nil
		}
		if r.left > 0 {
			n, err := r.in.Read(b[:min(uint64(len(b)), r.left)])
			r.left -= uint64(n)
			if err == io.EOF {
				err = fmt.Errorf("%w: run ends within a record", ErrCorrupt)
			}
			if n > 0 || err != nil {
				return n, err
			}
			continue
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
}

// next begins with the next record.
func (r *OpenedRun) next() error {
	kind, err := r.in.ReadByte()
	if err != nil {
		return err
	}
	n, err := binary.ReadUvarint(r.in)
	if err != nil {
		return fmt.Errorf("%w: run ends within a record", ErrCorrupt)
	}
	r.head, r.at = r.head[:0], 0
	if Kind(kind) != KindSealed {
		r.head, r.left = binary.AppendUvarint(append(r.head, kind), n), n
		return nil
	}
	if n > maxSealedPiece {
		return fmt.Errorf("%w: a sealed piece of %d bytes", ErrCorrupt, n)
	}
	r.buf = slices.Grow(r.buf[:0], int(n))[:n]
	if _, err := io.ReadFull(r.in, r.buf); err != nil {
		return fmt.Errorf("%w: run ends within a record", ErrCorrupt)
	}
	r.head, err = r.o.Open(r.head, r.author, r.buf)
	return err
}
