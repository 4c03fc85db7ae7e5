package apply

import (
	"bytes"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

// TestDigestsDoNotCancel: a digest is that of a set of rows in any order, and another one for every other set.
func TestDigestsDoNotCancel(t *testing.T) {
	hash := func(values ...string) [verifyHash]byte {
		var row [][]byte
		for _, v := range values {
			if v == "NULL" {
				row = append(row, nil)
			} else {
				row = append(row, []byte(v))
			}
		}
		h, _ := hashRow(nil, row)
		return h
	}
	digest := func(hashes ...[verifyHash]byte) string { return string(digestOf(hashes)) }
	a, b := hash("1", "x"), hash("2", "y")
	if digest(a, b) != digest(b, a) {
		t.Error("the order of rows counts")
	}
	seen := map[string]string{}
	for what, d := range map[string]string{
		"none": digest(), "one": digest(a), "both": digest(a, b), "one twice": digest(a, a), "one thrice": digest(a, a, a), "values exchanged": digest(hash("1", "y"), hash("2", "x")),
		"NULL": digest(hash("NULL", "x")), "empty": digest(hash("", "x")), "columns run together": digest(hash("1x", "")), "a column less": digest(hash("1")),
	} {
		if seen[d] != "" {
			t.Errorf("%s is as %s", what, seen[d])
		}
		seen[d] = what
	}
}

// TestDifferingParts: the parts in which two answers differ, all of them if one cannot be read.
func TestDifferingParts(t *testing.T) {
	digests := bytes.Repeat([]byte{7}, VerifyParts*verifyHash)
	other := bytes.Clone(digests)
	other[0], other[63*verifyHash+verifyHash-1] = 8, 8
	a, b := &VerifyAnswer{Digests: digests}, &VerifyAnswer{Digests: other}
	if got := a.Differing(b); got != 1|1<<63 {
		t.Errorf("parts %b differ", got)
	}
	if a.Differing(a) != 0 || ^a.Differing(&VerifyAnswer{}) != 0 {
		t.Error("an answer differs from itself, or not from one that is empty")
	}
	key := [][]byte{[]byte("7")}
	if part := partOf(key); !InParts(key, 1<<part) || InParts(key, ^(1<<part)) {
		t.Error("a row is not in its part alone")
	}
}

// TestSegmentSQL: what is read of a segment.
func TestSegmentSQL(t *testing.T) {
	plain := &pgType{schema: "pg_catalog", name: "int4"}
	domain := &pgType{schema: "app", name: "code", base: &pgType{schema: "app", name: "mood"}}
	v := &verified{table: &table{rows: `ONLY "app"."t"`, cols: []column{{quoted: `"a"`, typ: plain}, {quoted: `"b"`, typ: domain}, {quoted: `"c"`, typ: plain}}}, key: []int{1, 0}, cells: []int{0, 1, 2}}
	const read = `SELECT t."b", t."a", t."a", t."b", t."c" FROM ONLY "app"."t" t`
	const order = ` ORDER BY (t."b")::"app"."mood", t."a"`
	for want, q := range map[string]*VerifyQuestion{
		read + order:                {},
		read + order + " LIMIT 101": {Limit: 100},
		read + ` WHERE ROW((t."b")::"app"."mood", t."a") > ROW($1::text::"app"."mood", $2::text::"pg_catalog"."int4")` +
			` AND ROW((t."b")::"app"."mood", t."a") <= ROW($3::text::"app"."mood", $4::text::"pg_catalog"."int4")` + order: {
			From: [][]byte{[]byte("glad"), []byte("1")}, To: [][]byte{[]byte(""), []byte("2")}},
	} {
		if got, args := v.segmentSQL(q); got != want || len(args) != len(q.From)+len(q.To) {
			t.Errorf("got\n%s\nwant\n%s, with %d arguments", got, want, len(args))
		}
	}
}

// TestVersionsCountByWhatIsKnown: the order in which a version counts before another one.
func TestVersionsCountByWhatIsKnown(t *testing.T) {
	by := func(node string, stamp origin.Stamp) VerifyVersion {
		return VerifyVersion{Known: VerifyKnownBy, Origin: origin.Origin{Node: node, Epoch: 1}, Stamp: stamp}
	}
	rising := []VerifyVersion{{}, {Known: VerifyForeign}, {Known: VerifyOld}, by("b", 1), by("a", 2), by("b", 2)}
	for i, v := range rising {
		for j, w := range rising {
			if v.Later(w) != (i > j) {
				t.Errorf("%v later than %v: %v", v, w, v.Later(w))
			}
		}
	}
}
