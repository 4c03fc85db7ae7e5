package apply

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/wire"
)

// A segment is what stands behind one key and up to another one, in the order of this server. Orders of text differ between
// collations and their versions; then a row may be in two segments elsewhere, but never in none: of all bounds in a row, there
// is one that it is behind while it is not behind the next. So nothing is missed, and what only seems to differ is looked at.

const (
	// verifyHash is how many bytes of a SHA-256 stand for a row, and for a part of a segment.
	verifyHash = 16
	// verifyListBytes bounds the hashes of one answer: a broker takes messages of 1 MiB, and JSON makes a third more of them.
	verifyListBytes = 384 << 10
)

// asTexts runs a query whose arguments and values are texts.
const asTexts = pgx.QueryExecModeExec

// hashRow is the hash of a row's columns, which came as text. It tells NULL from an empty text and no column runs into the next.
func hashRow(buf []byte, values [][]byte) (hash [verifyHash]byte, scratch []byte) {
	buf = buf[:0]
	for _, v := range values {
		n := uint64(math.MaxUint64)
		if v != nil {
			n = uint64(len(v))
		}
		buf = append(binary.BigEndian.AppendUint64(buf, n), v...)
	}
	sum := sha256.Sum256(buf)
	return [verifyHash]byte(sum[:]), buf
}

// partOf is the part of a segment in which the row of a key is. It must be the same on all nodes, whatever they are asked.
func partOf(key [][]byte) int {
	hash, _ := hashRow(nil, key)
	return int(hash[0]) % VerifyParts
}

// segmentSQL reads a segment: the columns of the key, then those that are compared.
func (t *verified) segmentSQL(q *VerifyQuestion) (string, []any) {
	var key, order, cols []string
	for _, k := range t.key {
		key, order = append(key, t.cols[k].compared()), append(order, "t."+t.cols[k].quoted)
	}
	cols = append(cols, order...)
	for _, c := range t.cells {
		cols = append(cols, "t."+t.cols[c].quoted)
	}
	where := slices.Clone(t.only)
	var args []any
	bound := func(op string, values [][]byte) {
		if values == nil {
			return
		}
		var ps []string
		for i, v := range values {
			args = append(args, string(v))
			ps = append(ps, fmt.Sprintf("$%d::text::%s", len(args), t.keyType(i)))
		}
		where = append(where, fmt.Sprintf("ROW(%s) %s ROW(%s)", strings.Join(key, ", "), op, strings.Join(ps, ", ")))
	}
	bound(">", q.From)
	bound("<=", q.To)
	sql := "SELECT " + strings.Join(cols, ", ") + " FROM " + t.rows + " t"
	if where != nil {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	sql += " ORDER BY " + strings.Join(key, ", ")
	if q.Limit > 0 {
		sql += fmt.Sprintf(" LIMIT %d", q.Limit+1) // one more tells that there is more
	}
	return sql, args
}

// keyType is the type of a column of the key, without its domain.
func (t *verified) keyType(i int) string {
	root := t.cols[t.key[i]].typ.root()
	return pgx.Identifier{root.schema, root.name}.Sanitize()
}

// segment reads a segment and tells its digests, or the hashes of the rows in some parts.
func (v *Verifier) segment(ctx context.Context, t *verified, q *VerifyQuestion) (*VerifyAnswer, error) {
	sql, args := t.segmentSQL(q)
	rows, err := v.conn.Query(ctx, sql, append([]any{asTexts}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("read rows of %s: %w", t.quoted, explain(err))
	}
	defer rows.Close()
	a := &VerifyAnswer{}
	var parts [VerifyParts][][verifyHash]byte
	var buf []byte
	listed := 0
	for rows.Next() {
		if q.Limit > 0 && a.Rows == q.Limit {
			a.Cut = true
			continue
		}
		values := rows.RawValues()
		key, cells := values[:len(t.key)], values[len(t.key):]
		a.Rows++
		for _, c := range cells {
			a.Bytes += int64(len(c))
		}
		var hash [verifyHash]byte
		hash, buf = hashRow(buf, cells)
		part := partOf(key)
		switch {
		case q.Kind == VerifyDigest:
			parts[part] = append(parts[part], hash)
		case q.Parts&(1<<part) != 0 && listed <= verifyListBytes:
			e := VerifiedEntry{Key: cloneValues(key), Hash: hash[:]}
			listed += len(hash) + 16
			for _, k := range key {
				listed += len(k) + 8
			}
			a.Hashes = append(a.Hashes, e)
		}
		if q.Kind == VerifyDigest && a.Rows == q.Limit {
			a.Last = cloneValues(key)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read rows of %s: %w", t.quoted, explain(err))
	}
	if q.Kind == VerifyList {
		a.Cut = listed > verifyListBytes
		return a, nil
	}
	if !a.Cut {
		a.Last = nil
	}
	for i := range parts {
		a.Digests = append(a.Digests, digestOf(parts[i])...)
	}
	return a, nil
}

// digestOf is the digest of a set of hashes, in whatever order they come. They are sorted and hashed as a whole: unlike in a sum,
// nothing cancels.
func digestOf(hashes [][verifyHash]byte) []byte {
	slices.SortFunc(hashes, func(a, b [verifyHash]byte) int { return bytes.Compare(a[:], b[:]) })
	h := sha256.New()
	for i := range hashes {
		h.Write(hashes[i][:])
	}
	return h.Sum(nil)[:verifyHash]
}

func cloneValues(values [][]byte) [][]byte {
	out := make([][]byte, len(values))
	for i, b := range values {
		out[i] = append([]byte{}, b...) // never nil: a bound of "" is one
	}
	return out
}

// keyHashes are the hashes of keys as the rest of the bridge knows them.
func (v *Verifier) keyHashes(ctx context.Context, t *verified, keys [][][]byte) ([]wire.KeyHash, error) {
	var cols, from, names []string
	var formats pgx.QueryResultFormats
	for n := range t.key {
		from, names = append(from, fmt.Sprintf("$%d::text[]", n+1)), append(names, fmt.Sprintf("k%d", n+1))
	}
	for _, k := range t.table.key { // in their order the hash is made
		n := slices.Index(t.key, k)
		cols, formats = append(cols, fmt.Sprintf("v.k%d::%s", n+1, t.keyType(n))), append(formats, t.cols[k].typ.format())
	}
	sql := fmt.Sprintf("SELECT %s FROM unnest(%s) WITH ORDINALITY v(%s, n) ORDER BY v.n", strings.Join(cols, ", "), strings.Join(from, ", "), strings.Join(names, ", "))
	rows, err := v.conn.Query(ctx, sql, append([]any{pgx.QueryExecModeDescribeExec, formats}, t.keyArrays(keys)...)...)
	if err != nil {
		return nil, fmt.Errorf("read keys of %s: %w", t.quoted, err)
	}
	defer rows.Close()
	var values [][]wire.Value
	for rows.Next() {
		values = append(values, keyValues(cloneValues(rows.RawValues()), formats))
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read keys of %s: %w", t.quoted, err)
	}
	rows.Close()
	var hashes []wire.KeyHash
	for _, key := range values {
		k, err := v.run.digests.Hash(v.whole(ctx), t.hasher, key)
		if err != nil {
			return nil, fmt.Errorf("hash key of %s: %w", t.quoted, err)
		}
		hashes = append(hashes, k)
	}
	return hashes, nil
}

// keyArrays are keys as arguments: of each column, all values.
func (t *verified) keyArrays(keys [][][]byte) []any {
	var args []any
	for n := range t.key {
		col := make([]string, len(keys))
		for i, key := range keys {
			if n < len(key) {
				col[i] = string(key[n])
			}
		}
		args = append(args, col)
	}
	return args
}

// Differing has a bit for each part of a segment in which another node's answer differs.
func (a *VerifyAnswer) Differing(b *VerifyAnswer) (parts uint64) {
	for i := range VerifyParts {
		at := i * verifyHash
		if len(a.Digests) != VerifyParts*verifyHash || len(b.Digests) != len(a.Digests) || !bytes.Equal(a.Digests[at:at+verifyHash], b.Digests[at:at+verifyHash]) {
			parts |= 1 << i
		}
	}
	return parts
}

// InParts reports whether the row of a key is in one of these parts.
func InParts(key [][]byte, parts uint64) bool { return parts&(1<<partOf(key)) != 0 }
