package capture

import (
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestWhatWentBeforeAStartIsStable: of what is not remembered it is known up to where it lies, with and without gists, and also when more is
// forgotten; of what may have been committed since, nothing is.
func TestWhatWentBeforeAStartIsStable(t *testing.T) {
	gist := &Gist{seq: 7}
	for i := range origin.Stamp(3) {
		gist.state.written.add(10+i, uint64(i)+5, 700)
	}
	for name, restore := range map[string]func(c *Capture) error{
		"frames": func(c *Capture) error {
			for i := range origin.Stamp(3) {
				c.state.written.add(10+i, uint64(i)+5, 700)
			}
			return nil
		},
		"a gist": func(c *Capture) error { return c.RestoreGist(gist.Encode()) },
	} {
		c := &Capture{state: &state{}}
		c.opts.Origin = origin.Origin{Node: "a", Epoch: 1}
		c.state.written.begin(7)
		if !c.state.written.below(7) || c.state.written.below(6) {
			t.Errorf("%s: before anything is restored, what is forgotten does not go up to 7", name)
		}
		if err := restore(c); err != nil {
			t.Fatal(err)
		}
		if c.Before(99, 600, 4) {
			t.Errorf("%s: something is known of a transaction though it is not known which ones had ended", name)
		}
		c.opts.StartXID = 720
		c.state.marks.add(wire.Mark{XID: 710, Seq: 7}, nil) // one of an earlier life still ran
		c.state.written.add(20, 8, 745)
		c.state.marks.add(wire.Mark{XID: 750, Seq: 8}, nil)
		for _, x := range []struct {
			at       origin.Stamp
			xid, seq uint64
			want     bool
		}{{99, 719, 4, true}, {99, 719, 3, false}, {99, 720, 4, false}, {11, 600, 4, false}} {
			if got := c.Before(x.at, x.xid, x.seq); got != x.want {
				t.Errorf("%s: transaction %d, committed at %d, was before %d: %t", name, x.xid, x.at, x.seq, got)
			}
		}
		c.Forget(origin.Vector{{Origin: c.opts.Origin, Seq: 8}})
		if c.Wrote(10) || c.Before(10, 600, 4) || !c.Before(10, 600, 8) {
			t.Errorf("%s: what has been forgotten meanwhile is not known to be up to 8", name)
		}
	}
}
