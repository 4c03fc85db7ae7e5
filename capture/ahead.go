package capture

import (
	"time"

	"github.com/pgbridge/pgbridge/wire"
)

// A frame under construction goes ahead of itself (stream/ahead.go), again and again while it fills: those who read
// along have the latest commits at once, and the frame need not hurry, which spares the broker syncs of its disk, and
// with them the primary beside it, whose commits wait for the same disk.

const (
	// aheadBytes is how large a draft may be to go ahead, aheadGap and aheadGrowth when it goes again, since all of it
	// does: after the gap if it has grown by that share, after aheadLate in any case.
	aheadBytes  = 16 << 10
	aheadGap    = 250 * time.Microsecond
	aheadGrowth = 8
	aheadLate   = time.Millisecond
	// shownLingers is for how many times the linger time a draft fills of which readers have all.
	shownLingers = 4
)

// showable reports whether readers can take the draft as it is: they do not if something in front of it stands in the
// stream only, or will.
func (t *tagger) showable() bool {
	return t.plain() && t.draft.firstSeq != 0 && t.pub.Durable() >= t.unshown
}

func (t *tagger) plain() bool {
	return !t.draft.waits && len(t.draft.body) <= aheadBytes && t.mayShow()
}

// mayShow reports whether readers may have what a standby that takes over may lack. Not while the last frame denies it.
func (t *tagger) mayShow() bool {
	return t.pacing.standbys == "" || t.pacing.standbys == t.state.guard.names()
}

// show has the draft go ahead when there is enough that is new, and returns when to ask again.
func (t *tagger) show(now time.Time) time.Duration {
	d := &t.draft
	more := len(d.body) - d.shown
	if more == 0 {
		return t.opts.StatusInterval
	}
	gap := aheadLate
	if more >= d.shown/aheadGrowth {
		gap = aheadGap
	}
	if left := gap - now.Sub(d.shownAt); left > 0 {
		return left
	}
	f := wire.Frame{Header: t.header(), Body: d.body}
	t.pub.Ahead(&f, false)
	d.shown, d.shownAt = len(d.body), now
	return t.opts.StatusInterval
}

// showWhole says that the draft is whole now, as it is published, so that readers may take what follows ahead, too. It
// reports false if they must wait for it to come from the stream.
func (t *tagger) showWhole(now time.Time) bool {
	d := &t.draft
	if !t.plain() || d.firstSeq != 0 && d.shown < len(d.body) && !t.fresh(now) {
		return false
	}
	f := wire.Frame{Header: t.header(), Body: d.body}
	t.pub.Ahead(&f, true)
	return true
}
