package bridge

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// A node that is away for long would fill the others' streams, and then their WAL. So beyond stream.absent_bytes own frames go,
// oldest first, that all other nodes have but those that are away; these must get the rows from others when they are back. A node
// that is alone lets nothing go: nobody else has it. What decides about late transactions of a node that is away is kept for it:
// tombstones, lifted stamps, the journal. Of own frames it is put into the database before they go (apply/letgo.go).

// letGoStep is how many bytes of frames go at once.
const letGoStep = 128 << 20

// surplus is by how much a stream is to shrink: letting go begins just below the budget, so that it does not outgrow it, and goes
// on until there is room for a while.
func surplus(info stream.Extent, budget uint64, begin bool) uint64 {
	keep := budget - budget/8
	if begin && info.Bytes <= budget-budget/16 || info.Bytes <= keep {
		return 0
	}
	return info.Bytes - keep
}

// away returns the nodes that frames are not kept for beyond the budget, sorted: those that are away, and those that lack what is gone
// and will be given what came of it. Until they have that the older frames are of no use to them; and a stream that they had fill up
// would keep capture from reading on, and this node from giving it to them.
func (l *life) away() []string {
	away := l.neighbours.away(time.Now())
	for _, x := range l.applier.Lacking() {
		if !slices.Contains(away, x.Node) {
			away = append(away, x.Node)
		}
	}
	slices.Sort(away)
	return away
}

// letGo lets own frames go that only nodes lack which are away, as long as the stream holds too much.
func (l *life) letGo(ctx context.Context, away []string, due *purge) {
	l.noteLacking()
	budget := uint64(l.settings.now().Stream.AbsentBytes)
	if budget == 0 || len(away) == 0 {
		return
	}
	for begin := true; ; begin = false {
		more, err := l.letGoOnce(ctx, away, budget, begin, due)
		l.noteLacking()
		if err != nil && ctx.Err() == nil {
			l.log.Warn("own frames cannot be let go", "err", err.Error())
		}
		if err != nil || !more {
			return
		}
	}
}

// letGoOnce reports whether there may be more to let go.
func (l *life) letGoOnce(ctx context.Context, away []string, budget uint64, begin bool, due *purge) (bool, error) {
	if due.below != 0 {
		return l.purgeDue(ctx, due)
	}
	info, err := l.publisher.Info(ctx)
	if err != nil {
		return false, err
	}
	much := surplus(info, budget, begin)
	if much == 0 {
		return false, nil
	}
	want := info.First + min(much, letGoStep)*info.Frames/info.Bytes + 1
	below := l.outbox.toward(want, l.applier.StableBut(away), l.applier.HoldLSN())
	if below <= info.First {
		return false, nil
	}
	if err := l.boilDown(ctx, info.First, below, away); err != nil {
		return false, err
	}
	// That the others have it is known from transactions that were applied asynchronously, as in retain.
	lsn, err := l.applier.Flush(ctx)
	if err != nil {
		return false, err
	}
	*due = purge{below, lsn}
	return l.purgeDue(ctx, due)
}

// boilDown puts what own frames say that must outlive them into the database.
func (l *life) boilDown(ctx context.Context, first, below uint64, away []string) error {
	g := l.capture.NewGist()
	defer g.Close()
	frames := 0
	gone, _ := l.applier.Gone() // and not purged, if that failed
	err := l.publisher.Scan(ctx, max(first, gone), below-1, func(_ uint64, f *wire.Frame) error {
		frames++
		return g.Frame(f)
	})
	if err != nil || frames == 0 {
		return err
	}
	x := apply.LetGo{StreamSeq: below, Away: away, Gist: g.Encode()}
	x.Seq, x.Stamp = g.Last()
	for _, b := range g.Buried() {
		y := apply.Buried{Seq: b.Seq, Stamp: b.Stamp, Keys: b.Keys}
		for _, t := range b.Tables {
			y.Tables = append(y.Tables, [2]string{t.Schema, t.Name})
		}
		x.Buried = append(x.Buried, y)
	}
	return l.applier.LetGo(ctx, x)
}

func names(all []apply.Lacking) map[string]bool {
	m := map[string]bool{}
	for _, x := range all {
		m[x.Node] = true
	}
	return m
}

// noteLacking logs which nodes have begun to lack what is gone, and which have it now.
func (l *life) noteLacking() {
	all := l.applier.Lacking()
	now := names(all)
	for _, x := range all {
		if !l.lacking[x.Node] {
			l.log.Warn("node is let go: frames that it lacks are gone from the own stream", "node", x.Node, "seen_seq", x.Seen, "gone_seq", x.Gone)
		}
	}
	for node := range l.lacking {
		if !now[node] {
			l.log.Info("node that was let go has seen what it lacked", "node", node)
		}
	}
	l.lacking = now
}

func (l *life) reportLetGo() (all []LetGoReport) {
	for _, x := range l.applier.Lacking() {
		all = append(all, LetGoReport{Node: x.Node, SeenSeq: x.Seen, GoneSeq: x.Gone, Transactions: x.Transactions, Since: x.Since.UTC()})
	}
	return all
}

func letGoAlarm(n *LetGoReport) Alarm {
	return Alarm{Code: "node-let-go", Severity: SeverityWarning,
		Text: fmt.Sprintf("node %s has been away for too long: %d own transactions that it lacks are gone from the stream, the first ones since %s",
			n.Node, n.Transactions, n.Since.Format(time.RFC3339)),
		Mend: "let its bridge run and be reached; then it gets the rows from the others. Raise stream.absent_bytes to keep more for such nodes"}
}
