package apply

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

const (
	// verifyCell is how many bytes of a value are told.
	verifyCell = 200
	// verifyRow is up to how many bytes a row is told as JSON.
	verifyRow = 128 << 10
)

// look looks at single rows, in one snapshot.
func (v *Verifier) look(ctx context.Context, t *verified, q *VerifyQuestion) (*VerifyAnswer, error) {
	if err := v.run.visible(ctx); err != nil {
		return nil, err
	}
	hashes, err := v.keyHashes(ctx, t, q.Keys)
	if err != nil {
		return nil, err
	}
	a := &VerifyAnswer{Looks: make([]VerifyLooked, len(q.Keys))}
	// Before the look: a take-back that a delete had asked for which others have seen is through then, or is met here.
	v.a.absence.settle(v.a.progress.readBack(v.run.wal))
	for i, k := range hashes {
		if v.a.absence.unsettled(t.m.name(), k, registration{origin: v.a.own, seq: math.MaxUint64}, v.run.wal.Passed()) {
			a.Looks[i].Reason, a.Looks[i].Passing = "a delete here may still take it back", true
		}
	}
	opts := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, v.conn, opts, func(tx pgx.Tx) error {
		var xmax int64
		if err := tx.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8`).Scan(&xmax); err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		v.run.xmax = uint64(xmax)
		if err := v.lookAt(ctx, t, q, hashes, a.Looks); err != nil {
			return err
		}
		return v.reasons(ctx, t, hashes, a.Looks)
	})
	if err != nil {
		return nil, err
	}
	if q.Cells { // to be shown, not to be ordered by
		return a, nil
	}
	a.Seen, err = v.a.Seen(ctx, v.run.wal)
	return a, err
}

// lookSQL asks for rows with their versions.
func (t *verified) lookSQL(row bool) string {
	var from, names, where, cols []string
	where = append(where, t.only...)
	for n, k := range t.key {
		from, names = append(from, fmt.Sprintf("$%d::text[]", n+1)), append(names, fmt.Sprintf("k%d", n+1))
		where = append(where, fmt.Sprintf("%s %s v.k%d::%s", t.cols[k].compared(), t.cols[k].equals, n+1, t.keyType(n)))
	}
	json := "NULL"
	if row {
		json = "row_to_json(t.*)::text"
	}
	for _, c := range t.cells {
		cols = append(cols, "t."+t.cols[c].quoted)
	}
	return fmt.Sprintf("SELECT v.n, %s, %s%s FROM unnest(%s, $%d::int8[]) WITH ORDINALITY v(%s, lo, n), %s t, %s WHERE %s",
		json, lookSQL("v.lo"), strings.Join(append([]string{""}, cols...), ", "), strings.Join(from, ", "), len(t.key)+1, strings.Join(names, ", "),
		t.rows, lookVersion, strings.Join(where, " AND "))
}

// lookPlaces is how many columns lookSQL asks for.
const lookPlaces = 9

func (v *Verifier) lookAt(ctx context.Context, t *verified, q *VerifyQuestion, hashes []wire.KeyHash, looks []VerifyLooked) error {
	lows := make([]int64, len(hashes))
	for i, k := range hashes {
		lows[i] = int64(k.Lo)
	}
	args := append([]any{asTexts}, t.keyArrays(q.Keys)...)
	rows, err := v.conn.Query(ctx, t.lookSQL(q.Cells && t.hidden == nil), append(args, lows)...)
	if err != nil {
		return fmt.Errorf("look at rows of %s: %w", t.quoted, explain(err))
	}
	defer rows.Close()
	var buf []byte
	told := 0
	for rows.Next() {
		values := rows.RawValues()
		n, err := strconv.Atoi(string(values[0]))
		if err != nil || n < 1 || n > len(looks) {
			return fmt.Errorf("look at rows of %s: place %q", t.quoted, values[0])
		}
		l := &looks[n-1]
		cells := values[2+lookPlaces:]
		var hash [verifyHash]byte
		hash, buf = hashRow(buf, cells)
		l.Found, l.Hash, l.Writer = true, hash[:], string(values[2])
		if l.Version, err = v.version(values[2:2+lookPlaces], hashes[n-1]); err != nil {
			return err
		}
		if !q.Cells {
			continue
		}
		if told > verifyListBytes {
			l.Left = true
			continue
		}
		if len(values[1]) <= verifyRow {
			l.Row = string(values[1])
		}
		for _, c := range cells {
			l.Cells = append(l.Cells, cellOf(c))
			told += min(len(c), verifyCell) + 40
		}
		told += 2 * len(l.Row) // its quotes are escaped
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("look at rows of %s: %w", t.quoted, explain(err))
	}
	for i := range looks {
		if d, ok := v.a.absence.tombstone(t.m.name(), hashes[i]); !looks[i].Found && ok {
			looks[i].Version = VerifyVersion{Known: VerifyKnownBy, Origin: d.Origin, Stamp: d.Stamp}
		}
	}
	return nil
}

func cellOf(value []byte) VerifyCell {
	hash, _ := hashRow(nil, [][]byte{value})
	c := VerifyCell{Hash: binary.BigEndian.Uint64(hash[:])}
	if value == nil {
		return c
	}
	text := string(value)
	if len(text) > verifyCell {
		n := verifyCell
		for n > 0 && !utf8.RuneStart(text[n]) {
			n--
		}
		text = text[:n] + "…"
	}
	c.Text = &text
	return c
}

// version finds who wrote a row, by what lookSQL gives. Unlike a transaction that is about to be applied, it need not know who
// wrote what everybody has seen.
func (v *Verifier) version(row [][]byte, k wire.KeyHash) (VerifyVersion, error) {
	w, id, known, err := v.run.writerOf(row, k)
	old := VerifyVersion{Known: VerifyOld}
	if err != nil || !known {
		return old, err
	}
	by := func(o origin.Origin, s origin.Stamp) VerifyVersion {
		return VerifyVersion{Known: VerifyKnownBy, Origin: o, Stamp: s}
	}
	switch o, ok := v.run.originOf(id); {
	case id == 0 && (!w.genuine || w.id < v.a.opts.FirstXID):
		return old, nil
	case id == 0:
		return by(v.a.own, v.run.wal.LocalStamp(w.stamp, k)), nil
	case id == v.a.kept.back:
		l, err := v.run.returned(look{}, row, w)
		if err != nil || l.local.Ancient {
			return old, err
		}
		return by(l.local.Version.Origin, l.local.Version.Stamp), nil
	case !ok:
		return VerifyVersion{Known: VerifyForeign}, nil
	case row[6] != nil: // a bundle wrote it
		behind, err := strconv.ParseInt(string(row[6]), 10, 64)
		if err != nil || behind < 0 {
			return old, err
		}
		return by(o, w.stamp-origin.Stamp(behind)), nil
	default:
		return by(o, w.stamp), nil
	}
}

// reasons finds out why rows may lawfully be other ones here than elsewhere.
func (v *Verifier) reasons(ctx context.Context, t *verified, hashes []wire.KeyHash, looks []VerifyLooked) error {
	hi, lo, packed := make([]int64, len(hashes)), make([]int64, len(hashes)), make([][]byte, len(hashes))
	for i, k := range hashes {
		hi[i], lo[i], packed[i] = int64(k.Hi), int64(k.Lo), packKeys([]wire.KeyHash{k})
	}
	rows, err := v.conn.Query(ctx, `SELECT v.n, q.hi IS NOT NULL, o.hash IS NOT NULL FROM unnest($1::int8[], $2::int8[], $3::bytea[]) WITH ORDINALITY v(hi, lo, hash, n)
		LEFT JOIN pgbridge.quarantine q ON q.hi = v.hi AND q.lo = v.lo LEFT JOIN (SELECT DISTINCT hash FROM pgbridge.owed) o ON o.hash = v.hash
		WHERE q.hi IS NOT NULL OR o.hash IS NOT NULL`, hi, lo, packed)
	if err != nil {
		return fmt.Errorf("read what is kept aside: %w", err)
	}
	var n int
	var kept, owed bool
	_, err = pgx.ForEachRow(rows, []any{&n, &kept, &owed}, func() error {
		if looks[n-1].Reason = "it is kept aside, since a later row has a value that must be unique (docs/unique.md)"; owed {
			looks[n-1].Reason = "it is owed: its node is to write it again, with a large value that is not here"
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read what is kept aside: %w", err)
	}
	for i, k := range hashes {
		if name, ok := v.a.parked.touching(t.m.name(), k); ok {
			looks[i].Reason = "transaction " + name + " is parked, which touches it (pgbridge parked)"
		}
	}
	return nil
}
