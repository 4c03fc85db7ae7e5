package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pgbridge/pgbridge/wire"
)

// gravesInMemory is how many bytes of deleted keys one transaction keeps in memory; more go to a file.
const gravesInMemory = 128 << 10

// maxKeyBytes bounds one key. PostgreSQL's btree takes keys of a third of a page, compressed.
const maxKeyBytes = 1 << 20

// graves holds the keys that one transaction deletes and the tables that it truncates, until it commits.
// The zero value with a directory is empty and ready to use.
type graves struct {
	dir    string
	tables []*Table
	at     map[*Table]uint32 // places in tables
	buf    []byte
	file   *os.File // unlinked at once, so that nothing is left behind
	count  int
}

// grave is one entry: a delete if key is set, else a truncate.
type grave struct {
	sub   uint32 // the subtransaction that did it
	table *Table
	hash  wire.KeyHash
	key   []wire.Value
}

// add records a delete or, without a key, a truncate. It copies the key.
func (g *graves) add(e grave) error {
	table := g.place(e.table)
	at := len(g.buf)
	b := append(g.buf, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, e.sub)
	b = binary.BigEndian.AppendUint32(b, table)
	b = binary.BigEndian.AppendUint64(b, e.hash.Hi)
	b = binary.BigEndian.AppendUint64(b, e.hash.Lo)
	b = appendTuple(b, e.key)
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	g.buf = b
	g.count++
	if len(g.buf) < gravesInMemory {
		return nil
	}
	return g.spill()
}

func (g *graves) place(t *Table) uint32 {
	at, ok := g.at[t]
	if !ok {
		if g.at == nil {
			g.at = map[*Table]uint32{}
		}
		at = uint32(len(g.tables))
		g.tables = append(g.tables, t)
		g.at[t] = at
	}
	return at
}

func appendTuple(b []byte, values []wire.Value) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		b = append(b, byte(v.Format))
		if v.Format == wire.Text || v.Format == wire.Binary {
			b = binary.BigEndian.AppendUint32(b, uint32(len(v.Data)))
			b = append(b, v.Data...)
		}
	}
	return b
}

func (g *graves) spill() error {
	if g.file == nil {
		if err := os.MkdirAll(g.dir, 0o700); err != nil {
			return fmt.Errorf("spool deleted keys: %w", err)
		}
		f, err := os.CreateTemp(g.dir, "deletes-")
		if err != nil {
			return fmt.Errorf("spool deleted keys: %w", err)
		}
		g.file = f
		if err := os.Remove(f.Name()); err != nil {
			return fmt.Errorf("spool deleted keys: %w", err)
		}
	}
	if _, err := g.file.Write(g.buf); err != nil {
		return fmt.Errorf("spool deleted keys: %w", err)
	}
	g.buf = g.buf[:0]
	return nil
}

// each calls f for every entry in order, but those of subtransactions in void. The key is valid during
// the call only.
func (g *graves) each(void *xidSet, f func(grave)) error {
	if g.count == 0 {
		return nil
	}
	d := digger{graves: g, void: void, f: f}
	if g.file != nil {
		if _, err := g.file.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read deleted keys back: %w", err)
		}
		if err := d.file(bufio.NewReaderSize(g.file, 64<<10)); err != nil {
			return fmt.Errorf("read deleted keys back: %w", err)
		}
	}
	for b := g.buf; len(b) > 0; {
		n := binary.BigEndian.Uint32(b)
		if err := d.entry(b[4 : 4+n]); err != nil {
			return err
		}
		b = b[4+n:]
	}
	return nil
}

// digger reads graves back.
type digger struct {
	*graves
	void *xidSet
	f    func(grave)
	buf  []byte
	key  []wire.Value
}

func (d *digger) file(r *bufio.Reader) error {
	var head [4]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if cap(d.buf) < n {
			d.buf = make([]byte, n)
		}
		d.buf = d.buf[:n]
		if _, err := io.ReadFull(r, d.buf); err != nil {
			return err
		}
		if err := d.entry(d.buf); err != nil {
			return err
		}
	}
}

func (d *digger) entry(b []byte) error {
	c := cursor{b: b}
	e := grave{sub: c.u32()}
	at := c.u32()
	e.hash = wire.KeyHash{Hi: c.u64(), Lo: c.u64()}
	if c.bad || int(at) >= len(d.tables) {
		return fmt.Errorf("read deleted keys back: %w", wire.ErrCorrupt)
	}
	e.table = d.tables[at]
	var err error
	if d.key, _, err = wire.ParseTuple(d.key[:0], c.b); err != nil {
		return fmt.Errorf("read deleted keys back: %w", err)
	}
	if len(d.key) > 0 {
		e.key = d.key
	}
	if !d.void.has(e.sub) {
		d.f(e)
	}
	return nil
}

// reset empties g and keeps its memory.
func (g *graves) reset() {
	g.close()
	clear(g.tables)
	clear(g.at)
	g.tables, g.buf, g.count = g.tables[:0], g.buf[:0], 0
}

// close gives the file up, if there is one.
func (g *graves) close() {
	if g.file != nil {
		g.file.Close() // unlinked; there is nothing to lose
		g.file = nil
	}
}
