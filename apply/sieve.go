package apply

import (
	"bytes"
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
	if o.order, err = findOrder(ctx, l.conn, o.table); err != nil { // for its operators
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
			if err := del(fmt.Sprintf(`t.tableoid = %s AND t.ctid = ANY ('{"%s"}'::tid[])`, relation, strings.Join(part, `","`))); err != nil {
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
	path := slices.Clone(o.order.path)
	for i := range o.table.cols {
		if schema := (pgx.Identifier{o.table.cols[i].typ.root().schema}).Sanitize(); !slices.Contains(path, schema) {
			path = append(path, schema)
		}
	}
	for _, sql := range []string{
		"SET LOCAL search_path TO " + strings.Join(path, ", "),
		"CREATE TEMP TABLE pgbridge_page (LIKE " + p.table() + " INCLUDING GENERATED) ON COMMIT DROP",
	} {
		if _, err := l.conn.Exec(ctx, sql); err != nil {
			return 0, err
		}
	}
	tag, err := l.conn.PgConn().CopyFrom(ctx, page, fmt.Sprintf("COPY pg_temp.pgbridge_page (%s) FROM STDIN", p.copied("")))
	if err != nil {
		return 0, err
	}
	uniques, err := l.uniques(ctx, o.table)
	if err != nil {
		return 0, err
	}
	for _, u := range uniques {
		if _, err := l.conn.Exec(ctx, fmt.Sprintf("DELETE FROM %s t WHERE %s AND (%s) AND (%s) IN (SELECT %[4]s FROM pg_temp.pgbridge_page t WHERE %[3]s)",
			o.table.rows, l.older(), u.where, strings.Join(u.values, ", "))); err != nil {
			return 0, err
		}
	}
	_, err = l.conn.Exec(ctx, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %[2]s FROM pg_temp.pgbridge_page", p.table(), p.copied("")))
	return tag.RowsAffected(), err
}

// uniqueIndex is what may be once in a table: of rows under a condition, these values. They are of an alias t, or of the only table.
type uniqueIndex struct {
	values []string
	where  string
}

func (l *Loader) uniques(ctx context.Context, t *table) (all []uniqueIndex, err error) {
	rows, err := l.conn.Query(ctx, `SELECT k = 1, COALESCE(a.attname, ''), pg_get_indexdef(i.indexrelid, k, false), COALESCE(pg_get_expr(i.indpred, i.indrelid), 'true')
		FROM pg_index i CROSS JOIN generate_series(1, i.indnkeyatts) k LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k - 1]
		WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid ORDER BY i.indexrelid, k`, t.oid)
	if err != nil {
		return nil, err
	}
	var first bool
	var name, value, where string
	_, err = pgx.ForEachRow(rows, []any{&first, &name, &value, &where}, func() error {
		if first {
			all = append(all, uniqueIndex{where: where})
		}
		if i := slices.IndexFunc(t.cols, func(c column) bool { return c.name == name }); i >= 0 {
			value = t.cols[i].compared()
		}
		u := &all[len(all)-1]
		u.values = append(u.values, value)
		return nil
	})
	return all, err
}
