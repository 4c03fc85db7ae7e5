package apply

import (
	"bytes"
	"fmt"
	"math/rand"
	"testing"
)

// TestSieve: rows come in pieces of any size; those that are there already are told, and all others come through.
func TestSieve(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 200 {
		var all, want, have []byte
		var kept []bool
		for i := range r.Intn(50) {
			line := fmt.Appendf(nil, "%d\t%s\\n\n", i, bytes.Repeat([]byte{'x'}, r.Intn(30)))
			all = append(all, line...)
			if r.Intn(2) == 0 {
				want = append(want, line...)
			} else {
				h := hashLine(line)
				have, kept = append(have, h[:]...), append(kept, true)
			}
			if r.Intn(4) == 0 {
				h := hashLine(append(line, 'x')) // which the donor does not have
				have, kept = append(have, h[:]...), append(kept, false)
			}
		}
		var out bytes.Buffer
		s, err := newSieve(have, &out)
		if err != nil {
			t.Fatal(err)
		}
		for rest := all; len(rest) > 0; {
			n := min(1+r.Intn(20), len(rest))
			if _, err := s.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Fatalf("came through:\n%s\nwant\n%s", out.Bytes(), want)
		}
		hits := int64(0)
		for i, k := range kept {
			if s.kept[i/8]&(1<<(i%8)) != 0 != k {
				t.Fatalf("row %d of those that are there: kept %v", i, !k)
			}
			if k {
				hits++
			}
		}
		if s.hits != hits {
			t.Fatalf("%d rows stay, told are %d", hits, s.hits)
		}
	}
	if _, err := newSieve(make([]byte, 17), nil); err == nil {
		t.Error("17 bytes are hashes")
	}
}
