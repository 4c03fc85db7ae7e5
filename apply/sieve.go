package apply

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A node may join with rows that it has already, from a dump or a backup. It tells the donor hashes of what stands in a page; those
// rows that the donor has just so stay, all others that stood there go, and the donor gives what is missing. What stays counts as
// older than the cluster, as what is copied does: it is what all nodes have seen.

// sieveHash is how many bytes of a SHA-256 stand for a row, as COPY writes it.
const sieveHash = 16

func hashLine(line []byte) (h [sieveHash]byte) {
	sum := sha256.Sum256(line)
	return [sieveHash]byte(sum[:])
}

// lines cuts what COPY writes into rows. In a row there is no line feed.
type lines struct {
	rest []byte
	row  func(line []byte) error // with its line feed
}

func (l *lines) Write(b []byte) (int, error) {
	n := len(b)
	for {
		at := bytes.IndexByte(b, '\n')
		if at < 0 {
			l.rest = append(l.rest, b...)
			return n, nil
		}
		line := b[:at+1]
		if len(l.rest) > 0 {
			l.rest = append(l.rest, line...)
			line = l.rest
		}
		if err := l.row(line); err != nil {
			return 0, err
		}
		l.rest, b = l.rest[:0], b[at+1:]
	}
}

// sieve lets rows through to a writer but for those of which it has hashes.
type sieve struct {
	lines
	kept []byte // CopyEnd.Kept
	hits int64
}

func newSieve(have []byte, out io.Writer) (*sieve, error) {
	if len(have)%sieveHash != 0 {
		return nil, fmt.Errorf("%d bytes are not hashes of rows", len(have))
	}
	at := make(map[[sieveHash]byte]int, len(have)/sieveHash)
	for i := range len(have) / sieveHash {
		at[[sieveHash]byte(have[i*sieveHash:])] = i
	}
	s := &sieve{kept: make([]byte, (len(have)/sieveHash+7)/8)}
	s.row = func(line []byte) error {
		if i, ok := at[hashLine(line)]; ok {
			s.kept[i/8] |= 1 << (i % 8)
			s.hits++
			return nil
		}
		_, err := out.Write(line)
		return err
	}
	return s, nil
}

// Offer is what stood in a page before the node began to join.
type Offer struct {
	Have  []byte // hashes of the rows
	table *table
	order *order
	at    [][]string // table and place of each
	last  []string   // the key of the last one; nil: there are no more in the part
}

// older is the condition that a row stood there before the node began to join.
func (l *Loader) older() string {
	return fmt.Sprintf("age(t.xmin) > age('%d'::xid)", uint32(l.existing))
}

// Offer reads what stands in the next page of a part. It is nil where tables were empty.
func (l *Loader) Offer(ctx context.Context, p *CopyPart) (*Offer, error) {
	if l.existing == 0 {
		return nil, nil
	}
	t, err := l.catalog.table(ctx, p.Schema, p.Name)
	if err != nil {
		return nil, err
	}
	o := &Offer{table: t}
	return o, named("read rows of "+p.table(), pgx.BeginTxFunc(ctx, l.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) (err error) {
		if o.order, err = findOrder(ctx, l.conn, t); err != nil {
			return err
		}
		where := o.order.between(p.At, p.UpTo) + " AND " + l.older()
		keys := strings.Join(o.order.columns, ", ")
		err = tx.QueryRow(ctx, fmt.Sprintf("SELECT %s FROM %s t WHERE %s ORDER BY %s OFFSET %d LIMIT 1", o.order.text(), t.rows, where, keys, p.Page-1)).Scan(&o.last)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if o.last != nil {
			where = o.order.between(p.At, o.last) + " AND " + l.older()
		}
		w := &lines{row: func(line []byte) error {
			cells := bytes.SplitN(line, []byte{'\t'}, 3)
			if len(cells) < 3 {
				return fmt.Errorf("COPY has written %q", line)
			}
			o.at = append(o.at, []string{string(cells[0]), string(cells[1])})
			h := hashLine(cells[2])
			o.Have = append(o.Have, h[:]...)
			return nil
		}}
		_, err = tx.Conn().PgConn().CopyTo(ctx, w, fmt.Sprintf("COPY (SELECT t.tableoid, t.ctid, %s FROM %s t WHERE %s) TO STDOUT", p.copied("t."), t.rows, where))
		return err
	}))
}

// clear deletes what stood in the page and does not stay, and returns how many rows do. upTo is the last key of the page, nil that of
// the part.
func (l *Loader) clear(ctx context.Context, p *CopyPart, o *Offer, end *CopyEnd) (stay int64, err error) {
	if err := o.order.use(ctx, l.conn); err != nil {
		return 0, err
	}
	upTo := end.Last
	if upTo == nil {
		upTo = p.UpTo
	}
	if len(end.Kept) != (len(o.at)+7)/8 {
		return 0, fmt.Errorf("%d rows were offered, and the donor says of %d whether they stay; is its version older?", len(o.at), 8*len(end.Kept))
	}
	leaving := map[string][]string{}
	for i, at := range o.at {
		if end.Kept[i/8]&(1<<(i%8)) != 0 {
			stay++
		} else {
			leaving[at[0]] = append(leaving[at[0]], at[1])
		}
	}
	del := func(where string) error {
		_, err := l.conn.Exec(ctx, fmt.Sprintf("DELETE FROM %s t WHERE %s AND %s", o.table.rows, where, o.order.between(p.At, upTo)))
		return err
	}
	for _, relation := range slices.Sorted(maps.Keys(leaving)) {
		for part := range slices.Chunk(leaving[relation], deltaBatch) {
			if err := del(atPlaces(relation, part)); err != nil {
				return 0, err
			}
		}
	}
	if o.last != nil { // those behind the offered ones
		return stay, del(o.order.is(">", o.last) + " AND " + l.older())
	}
	return stay, nil
}

// fill writes rows where others stand that are still to be looked at, and go if they have a unique value of these.
func (l *Loader) fill(ctx context.Context, p *CopyPart, o *Offer, page io.Reader) (int64, error) {
	if _, err := l.conn.Exec(ctx, "CREATE TEMP TABLE pgbridge_page (LIKE "+p.table()+" INCLUDING GENERATED) ON COMMIT DROP"); err != nil {
		return 0, err
	}
	tag, err := l.conn.PgConn().CopyFrom(ctx, page, fmt.Sprintf("COPY pg_temp.pgbridge_page (%s) FROM STDIN", p.copied("")))
	if err != nil {
		return 0, err
	}
	for _, sql := range o.table.wayOf("pg_temp.pgbridge_page") {
		if _, err := l.conn.Exec(ctx, sql+" AND "+l.older()); err != nil {
			return 0, err
		}
	}
	_, err = l.conn.Exec(ctx, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %[2]s FROM pg_temp.pgbridge_page", p.table(), p.copied("")))
	return tag.RowsAffected(), err
}

// wayOf are statements that delete from alias t, the table's rows, what is in the way of the rows of a table of the same columns.
func (t *table) wayOf(rows string) []string {
	all := []string{fmt.Sprintf("DELETE FROM %s t USING %s n WHERE %s", t.rows, rows, t.sameKey("t", "n"))}
	for _, u := range t.uniques {
		var outputs, collide []string
		for i, p := range u.parts {
			name := fmt.Sprintf(`"pgbridge.%d"`, i)
			outputs, collide = append(outputs, fmt.Sprintf("(%s) AS %s", p.expr, name)), append(collide, u.collides(p, "n."+name))
		}
		where := cmp.Or(u.where, "true")
		all = append(all, fmt.Sprintf("DELETE FROM %s t USING (SELECT %s FROM %s WHERE %s) n WHERE (%[4]s) AND %[5]s",
			t.rows, strings.Join(outputs, ", "), rows, where, strings.Join(collide, " AND ")))
	}
	return all
}
