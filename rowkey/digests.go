package rowkey

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/zeebo/xxh3"

	"github.com/pgbridge/pgbridge/wire"
)

const (
	// remembered is how many digests each of the two generations of the cache holds, of some 100 bytes.
	remembered = 1 << 15
	// asked and askedBytes are how many values, and bytes of them, Learn asks for at once.
	asked      = 1 << 10
	askedBytes = 1 << 20
)

// Ask has f run on a connection to the local database that nobody else uses meanwhile. It returns nil only
// when f has; with an error f may still be running.
type Ask func(ctx context.Context, f func(context.Context, *pgx.Conn) error) error

// Digests hashes keys, with the server's help where that is needed. It remembers digests, so that hot keys
// cost no round trip. Not safe for concurrent use.
type Digests struct {
	ask Ask
	// young takes what is new and what is met again; when it is full it becomes old, and old goes.
	young, old map[wire.KeyHash]wire.Digest
	wanted     map[wire.KeyHash]want // met and not known
	size       int                   // bytes of wanted
	buf        []byte
}

// want is a value that the server is to hash.
type want struct {
	typ   *wire.KeyType
	value wire.Value
}

// NewDigests returns Digests that asks through ask.
func NewDigests(ask Ask) *Digests {
	return &Digests{ask: ask, young: map[wire.KeyHash]wire.Digest{}, wanted: map[wire.KeyHash]want{}}
}

// Digest implements wire.Digester: what is not known becomes wanted.
func (d *Digests) Digest(t *wire.KeyType, v wire.Value) wire.Digest {
	k := d.name(t, v)
	if got, ok := d.young[k]; ok {
		return got
	}
	if got, ok := d.old[k]; ok {
		d.young[k] = got
		return got
	}
	if _, ok := d.wanted[k]; !ok {
		d.wanted[k] = want{t, wire.Value{Format: v.Format, Data: slices.Clone(v.Data)}}
		d.size += len(v.Data)
	}
	return wire.Digest{}
}

// name is that of a value in the maps: they hold no values, which may be long.
func (d *Digests) name(t *wire.KeyType, v wire.Value) wire.KeyHash {
	d.buf = append(append(append(d.buf[:0], t.Query...), byte(v.Format)), v.Data...)
	sum := xxh3.Hash128(d.buf)
	return wire.KeyHash{Hi: sum.Hi, Lo: sum.Lo}
}

// Hash returns the hash of a key, after asking the server for what is not known of it. The error is the
// server's, or that of the connection.
func (d *Digests) Hash(ctx context.Context, h *wire.KeyHasher, key []wire.Value) (wire.KeyHash, error) {
	if !h.Served() {
		return h.Hash(key, nil), nil
	}
	d.forget()
	k := h.Hash(key, d)
	if len(d.wanted) == 0 {
		return k, nil
	}
	err := d.fetch(ctx, slices.Collect(maps.Values(d.wanted)))
	clear(d.wanted)
	if err != nil {
		return k, err
	}
	return h.Hash(key, d), nil
}

// Want notes what is not known of a key, for Learn to ask for. It reports that Learn should be called now.
func (d *Digests) Want(h *wire.KeyHasher, key []wire.Value) (full bool) {
	if h.Served() {
		h.Hash(key, d)
	}
	return len(d.wanted) >= asked || d.size >= askedBytes
}

// Learn asks the server for all that was wanted, one query for each of its functions, so that Hash will
// know. What the server refuses to hash stays unknown; the error is that of the connection.
func (d *Digests) Learn(ctx context.Context) error {
	if len(d.wanted) == 0 {
		return nil
	}
	wanted := slices.Collect(maps.Values(d.wanted))
	err := d.fetch(ctx, wanted)
	if Refused(err) {
		err = nil
		for i := 0; i < len(wanted) && err == nil; i++ {
			if err = d.fetch(ctx, wanted[i:i+1]); Refused(err) {
				err = nil
			}
		}
	}
	d.forget()
	return err
}

// Refused reports whether err is the server's answer to the question, rather than the loss of the server: 08
// are connection exceptions, 57P the end of the session.
func Refused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && !strings.HasPrefix(pg.Code, "08") && !strings.HasPrefix(pg.Code, "57P")
}

// forget drops what was wanted, and the oldest digests when there are enough younger ones.
func (d *Digests) forget() {
	clear(d.wanted)
	d.size = 0
	if len(d.young) >= remembered {
		d.old, d.young = d.young, map[wire.KeyHash]wire.Digest{}
	}
}

// question is one query: a type with its function, and the format of its values.
type question struct {
	query      string
	typ, array uint32
	format     wire.Format
}

// fetch asks for the digests of wanted. What the server refuses is the error then, the others are learned.
func (d *Digests) fetch(ctx context.Context, wanted []want) error {
	groups := map[question][]want{}
	for _, w := range wanted {
		q := question{w.typ.Query, w.typ.OID, w.typ.Array, w.value.Format}
		groups[q] = append(groups[q], w)
	}
	// An Ask that was given up may still run: only one that has returned nil is done with these.
	var refusal error
	answers := map[question][]wire.Digest{}
	if err := d.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		for q, group := range groups {
			got, err := q.put(ctx, conn, group)
			if err != nil && !Refused(err) {
				return err
			}
			if err != nil { // the connection is as good as before
				refusal = err
				continue
			}
			answers[q] = got
		}
		return nil
	}); err != nil {
		return err
	}
	for q, got := range answers {
		for i, w := range groups[q] {
			d.young[d.name(w.typ, w.value)] = got[i]
		}
	}
	return refusal
}

// put asks the server for the digests of a group's values.
func (q *question) put(ctx context.Context, conn *pgx.Conn, group []want) ([]wire.Digest, error) {
	format, values := int16(pgx.TextFormatCode), textArray(group) // of types that cannot be sent in binary
	if q.format == wire.Binary {
		format, values = pgx.BinaryFormatCode, binaryArray(q.typ, group)
	}
	r := conn.PgConn().ExecParams(ctx, q.query, [][]byte{values}, []uint32{q.array}, []int16{format}, []int16{pgx.BinaryFormatCode}).Read()
	if r.Err != nil {
		return nil, fmt.Errorf("hash keys: %w", r.Err)
	}
	if len(r.Rows) != len(group) {
		return nil, fmt.Errorf("hash keys: %d answers to %d values", len(r.Rows), len(group))
	}
	got := make([]wire.Digest, len(group))
	for i, row := range r.Rows {
		if len(row[0]) != 8 || len(row[1]) != 8 {
			return nil, fmt.Errorf("hash keys: an answer of %d and %d bytes", len(row[0]), len(row[1]))
		}
		copy(got[i][:8], row[0])
		copy(got[i][8:], row[1])
	}
	return got, nil
}

// binaryArray encodes values as array_recv takes them: one dimension, no NULLs.
func binaryArray(elem uint32, group []want) []byte {
	b := binary.BigEndian.AppendUint32(nil, 1)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, elem)
	b = binary.BigEndian.AppendUint32(b, uint32(len(group)))
	b = binary.BigEndian.AppendUint32(b, 1)
	for _, w := range group {
		b = binary.BigEndian.AppendUint32(b, uint32(len(w.value.Data)))
		b = append(b, w.value.Data...)
	}
	return b
}

// textArray writes values as array_in takes them. The delimiter is a comma but for box, which has no
// operator class that would make it a key.
func textArray(group []want) []byte {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	b := []byte{'{'}
	for i, w := range group {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, escape.Replace(string(w.value.Data))...)
		b = append(b, '"')
	}
	return append(b, '}')
}
