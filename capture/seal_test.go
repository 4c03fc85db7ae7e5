package capture

import (
	"bytes"
	"math/rand"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

var testKey = bytes.Repeat([]byte{1}, wire.SealKeyBytes)

// sealAtRandom has the rows of some tables sealed, of all, or mostly of none: whatever a test asks of frames must be so in each case. To
// read sealed rows takes long under the race detector.
func (b *bench) sealAtRandom() {
	b.t.Helper()
	which := max(rand.Intn(12)-8, 0)
	sealer, err := wire.NewSealer(b.opts.Origin, "a b", testKey, bytes.Repeat([]byte{2}, wire.SealPrefixBytes))
	if err != nil {
		b.t.Fatal(err)
	}
	other, err := wire.NewSealer(b.opts.Origin, "a c", testKey, bytes.Repeat([]byte{3}, wire.SealPrefixBytes))
	if err != nil {
		b.t.Fatal(err)
	}
	b.opts.Open = testOpener(b.t)
	b.opts.Seal = func(_, table string) *wire.Sealer {
		switch {
		case which == 0 || which == 1 && len(table)%3 == 0:
			return nil
		case which == 2 || len(table)%3 == 1:
			return sealer
		}
		return other
	}
	b.t.Logf("sealed: %s", []string{"nothing", "some", "all alike", "in two groups"}[which])
}

func testOpener(t testing.TB) *wire.Opener {
	t.Helper()
	o, err := wire.NewOpener("a", [][]byte{testKey})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// unsealed is what stands in records of node a.
func unsealed(t testing.TB, b []byte) []byte {
	t.Helper()
	b, err := testOpener(t).Body(origin.Origin{Node: "a", Epoch: 1}, b)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
