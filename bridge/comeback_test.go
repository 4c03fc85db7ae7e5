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

// TestMarkersOfLostHistoriesSayNothing: whose rows are a user's is told by ids, which are given out anew where a node's data are set back:
// a second time, too, while others still hand on frames of the first history.
func TestMarkersOfLostHistoriesSayNothing(t *testing.T) {
	lost := framed{last: 315, resume: 9000, mark: 2688, timeline: 1}
	since := []framed{{last: 316, resume: 4000, mark: 1500, timeline: 2}, {last: 320, resume: 5000, mark: 1600, timeline: 2}, {last: 400, resume: 7000, mark: 1900, timeline: 2}}
	for name, c := range map[string]struct {
		frames              []framed
		own, restored, fork uint64
		want                uint64
	}{
		"before what is here":      {append([]framed{lost}, since...), 321, 315, 0, 1600},
		"before the fork":          {append([]framed{lost}, since...), 0, 315, 6000, 1600},
		"none that is here":        {append([]framed{lost}, since...), 316, 315, 3000, 0},
		"of the first history":     {[]framed{{last: 10, mark: 800, timeline: 1}, lost}, 11, 0, 0, 800},
		"nothing tells it is here": {[]framed{lost}, 315, 0, 0, 0},
	} {
		h := history{frames: c.frames}
		if got := h.marked(c.own, c.restored, c.fork); got != c.want {
			t.Errorf("%s: marker %d, want %d", name, got, c.want)
		}
	}
}
