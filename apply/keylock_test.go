package apply

import (
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func holding(o origin.Origin, keys ...uint64) *held {
	h := &held{origin: o}
	for _, k := range keys {
		h.keys = append(h.keys, hashOf(k))
	}
	return h
}

func (l *keyLocks) holds(k wire.KeyHash) *held {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keys[k]
}

// TestWholeIsNotStarved: while a transaction waits for all keys, other origins take none that would keep it
// waiting, whether they hold some or not.
func TestWholeIsNotStarved(t *testing.T) {
	l := newKeyLocks(3)
	first := holding(nodeC, 1)
	if ok, _ := l.try(first); !ok {
		t.Fatal("a free key is not given")
	}
	whole := &held{origin: nodeA, whole: true}
	got := make(chan error, 1)
	go func() { got <- l.lock(t.Context(), whole) }()
	awaitTrue(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waiting) == 1
	})
	ok, freed := l.try(holding(nodeC, 2))
	if ok {
		t.Fatal("a key is given while another origin waits for all")
	}
	l.release(first)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	<-freed
	ok, freed = l.try(holding(nodeC, 2))
	if ok {
		t.Fatal("a key is given while another origin holds all")
	}
	l.release(whole)
	select {
	case <-freed:
	case <-time.After(10 * time.Second):
		t.Fatal("whoever waits is not told")
	}
	if ok, _ := l.try(holding(nodeC, 2)); !ok {
		t.Error("a free key is not given")
	}
}

// TestWholeGivesUp: those that it kept out are let in.
func TestWholeGivesUp(t *testing.T) {
	l := newKeyLocks(3)
	l.try(holding(nodeC, 1))
	leave := l.queue(&held{origin: nodeA, whole: true})
	ok, freed := l.try(holding(nodeC, 2))
	if ok {
		t.Fatal("let in")
	}
	leave()
	<-freed
	if ok, _ := l.try(holding(nodeC, 2)); !ok {
		t.Error("still kept out")
	}
}

// BenchmarkKeyLocks/take=n: a transaction takes n keys and gives them back.
func BenchmarkKeyLocks(b *testing.B) {
	l := newKeyLocks(3)
	h := &held{origin: nodeA}
	for i := range uint64(100) {
		h.keys = append(h.keys, wire.KeyHash{Hi: i, Lo: i})
	}
	for range b.N {
		l.try(h)
		l.release(h)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/key")
}

// TestPlanThatFailsGivesKeysBack to the transaction in flight that it had taken them over from.
func TestPlanThatFailsGivesKeysBack(t *testing.T) {
	l := newKeyLocks(3)
	sent, planned := holding(nodeA, 1, 2), holding(nodeA, 2, 2, 3)
	l.try(sent)
	l.try(planned)
	l.release(planned)
	if ok, _ := l.try(holding(nodeC, 2)); ok || l.holds(hashOf(2)) != sent || l.holds(hashOf(3)) != nil {
		t.Error("a key of a transaction in flight is free")
	}
	again := holding(nodeA, 2)
	l.try(again)
	again.keep()
	l.release(sent)
	if ok, _ := l.try(holding(nodeC, 2)); ok {
		t.Error("a key that was taken over is free when the first transaction lands")
	}
	late := holding(nodeA, 2)
	l.try(late)
	l.release(again)
	l.release(late)
	if len(l.keys) != 0 || len(l.holders) != 0 {
		t.Errorf("left: %d keys of %d transactions", len(l.keys), len(l.holders))
	}
}
