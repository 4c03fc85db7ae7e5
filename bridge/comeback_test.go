package bridge

import (
	"reflect"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestWholeQuestion: what is asked is what is understood, and nothing else is.
func TestWholeQuestion(t *testing.T) {
	own := origin.Origin{Node: "b", Epoch: 1}
	have := origin.Vector{{Origin: origin.Origin{Node: "a", Epoch: 1}, Seq: 7, Stamp: 70}, {Origin: own, Seq: 3, Stamp: 30}}
	keys := map[wire.KeyHash]bool{{Hi: 1, Lo: 2}: true, {Hi: 3, Lo: 4}: true}
	q := wholeQuestion(own, have, keys)
	if q[0] != askWhole {
		t.Fatalf("question %q", q[0])
	}
	got, whole, err := parseWhole(q[1:])
	if err != nil || !got.Equal(have) || whole.For != own || !reflect.DeepEqual(whole.Keys, keys) {
		t.Errorf("%v, %+v, %v", got, whole, err)
	}
	for n := range len(q) - 1 {
		if _, whole, err := parseWhole(q[1 : 1+n]); err == nil && len(whole.Keys) == len(keys) {
			t.Errorf("%d bytes of %d are taken for all", n, len(q)-1)
		}
	}
}
