package bridge

import (
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func TestVerdict(t *testing.T) {
	grave, mild := Alarm{Severity: SeverityError}, Alarm{Severity: SeverityWarning}
	for _, c := range []struct {
		r    Report
		well bool
		want string
	}{
		{Report{}, true, "all is well"},
		{Report{Alarms: []Alarm{mild}}, true, "it works, with 1 warning"},
		{Report{Alarms: []Alarm{mild, grave}}, false, "1 alarm needs a person"},
		{Report{Alarms: []Alarm{grave, grave}, Links: []LinkReport{{Parked: 2}, {Parked: 1}}}, false, "2 alarms need a person; 3 transactions are parked"},
		{Report{Waiting: "no server", Alarms: []Alarm{grave}}, false, "it does not work: no server"},
	} {
		r := c.r
		if r.judge(); r.Well != c.well || r.Verdict != c.want {
			t.Errorf("%+v: %t, %q", c.r, r.Well, r.Verdict)
		}
	}
}

// TestLastMinute: what was counted longer ago than a minute is forgotten, in the sum and in memory.
func TestLastMinute(t *testing.T) {
	var m minute
	at := time.Date(2026, 11, 29, 6, 0, 0, 0, time.UTC)
	if got := m.lastMinute(at, 5); got != 5 {
		t.Errorf("before any sample: %d", got)
	}
	for i := range 300 { // one a second
		m.note(at.Add(time.Duration(i)*time.Second), uint64(i))
	}
	if got := m.lastMinute(at.Add(299*time.Second), 302); got != 302-239 {
		t.Errorf("after 299 s: %d", got)
	}
	if len(m.samples) > 62 {
		t.Errorf("%d samples are kept", len(m.samples))
	}
	if got := m.lastMinute(at.Add(time.Hour), 302); got != 302-299 {
		t.Errorf("an hour later: %d", got)
	}
	if got := m.lastMinute(at.Add(time.Hour), 0); got != 0 {
		t.Errorf("a counter that began anew: %d", got)
	}
}

// TestOutboxLag: the bytes and the age of what a node lacks are those of the frames behind what it has.
func TestOutboxLag(t *testing.T) {
	o := &outbox{}
	for i := uint64(1); i <= 5; i++ {
		o.note(i, &wire.Frame{Header: wire.Header{LastSeq: 10 * i, LastStamp: origin.Stamp(i)}, Body: make([]byte, 100*i)})
	}
	for _, c := range []struct {
		seq, bytes uint64
		oldest     origin.Stamp
	}{{0, 1500, 1}, {10, 1400, 2}, {15, 1400, 2}, {40, 500, 5}, {50, 0, 0}} {
		if bytes, oldest := o.lag(c.seq); bytes != c.bytes || oldest != c.oldest {
			t.Errorf("behind %d: %d bytes from %d", c.seq, bytes, oldest)
		}
	}
	o.below(30, 0) // the first two are forgotten
	if bytes, _ := o.lag(40); bytes != 500 {
		t.Errorf("after a purge: %d bytes", bytes)
	}
}

// TestAnswersOfNodes: an answer comes back as it was; a refusal and what cannot be understood are errors.
func TestAnswersOfNodes(t *testing.T) {
	b, err := packAnswer(&nodeAnswer{Node: "b", Have: map[string]uint64{"a": 7}, Graph: "a b a-b"})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := unpackAnswer(b); err != nil || a.Node != "b" || a.Have["a"] != 7 || a.Graph != "a b a-b" || a.Tables != nil {
		t.Errorf("%+v, %v", a, err)
	}
	for _, bad := range [][]byte{nil, {}, {'?'}, {answerNode}, {answerNode, 1, 2, 3}, b[:len(b)/2], refuse(errBehind)} {
		if a, err := unpackAnswer(bad); err == nil {
			t.Errorf("%q: %+v", bad, a)
		}
	}
}
