package bridge

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgbridge/pgbridge/apply"
)

// An answer may be lost, as its question may, and it may take its time: who asks must tell the one from the other. So a node says
// within a moment at least that it works on it. Then it is asked the same again, which is not worked on anew: credentials with
// allow_responses allow a single message to each time that is asked.

const (
	// verifyMoment is how long an answer is waited for before it is said that it is worked on.
	verifyMoment = time.Second
	// verifyAnswer is how long one answer may take; a segment of large rows may have to be read.
	verifyAnswer = 60 * time.Second
	// verifyReach is how long a node may be silent before it is asked again, and before one that has not answered yet counts as one
	// that cannot be reached.
	verifyReach = 5 * time.Second
	// verifyAway is how long a node may be silent that has answered.
	verifyAway = 60 * time.Second
	// verifyAgain is the time from one try to reach a node to the next.
	verifyAgain = 100 * time.Millisecond
)

// errVerifySlow ends the work on an answer.
var errVerifySlow = fmt.Errorf("its answer takes more than %s; compare again when its server has less to do", verifyAnswer)

// errVerifyGivenUp ends it when its node asks another one.
var errVerifyGivenUp = errors.New("another question has come")

// slowAnswers are those that a node works on for others, one for each, since each asks one question after the other.
type slowAnswers struct {
	work func(ctx context.Context, q *apply.VerifyQuestion) []byte

	all  sync.WaitGroup         // of what is worked on
	mu   sync.Mutex             // guards what follows
	last map[string]*slowAnswer // by the node that has asked
}

type slowAnswer struct {
	id     string
	giveUp func()
	done   chan struct{} // closed when text is there
	text   []byte
}

// answer returns the answer to a question, or the one that says that it is worked on.
func (s *slowAnswers) answer(ctx context.Context, asker string, text []byte) []byte {
	var q apply.VerifyQuestion
	if err := json.Unmarshal(text, &q); err != nil {
		return verifyText(&apply.VerifyAnswer{Error: err.Error()})
	}
	q.Asker = asker
	a := s.workOn(ctx, &q)
	select {
	case <-a.done:
		return a.text
	case <-time.After(verifyMoment):
	case <-ctx.Done():
	}
	return verifyText(&apply.VerifyAnswer{Working: true})
}

// workOn begins to work on a question, if it is not the one that its node has asked before. Any other one that node has given up; or a
// question that it has given up before has been overtaken, and comes now. So one that is given up counts as being worked on, and is begun again
// when it is asked again.
func (s *slowAnswers) workOn(ctx context.Context, q *apply.VerifyQuestion) *slowAnswer {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.last[q.Asker]
	switch {
	case a != nil && q.ID != "" && a.id == q.ID: // one that is older than such numbers asks each question once
		return a
	case a != nil:
		a.giveUp()
	}
	a = &slowAnswer{id: q.ID, done: make(chan struct{})}
	ctx, giveUp := context.WithCancelCause(ctx)
	a.giveUp = func() { giveUp(errVerifyGivenUp) }
	s.last[q.Asker] = a
	s.all.Go(func() {
		defer giveUp(nil)
		ctx, cancel := context.WithTimeoutCause(ctx, verifyAnswer, errVerifySlow)
		defer cancel()
		if a.text = s.work(ctx, q); context.Cause(ctx) == errVerifyGivenUp {
			a.text = verifyText(&apply.VerifyAnswer{Working: true})
		}
		close(a.done)
	})
	return a
}

func verifyText(a *apply.VerifyAnswer) []byte {
	text, _ := json.Marshal(a) // of texts and numbers
	return text
}

// errVerifySilent is what is known of a node that does not answer.
var errVerifySilent = errors.New("no answer comes")

// askSlowly asks a question until it is answered; send sends it once. met says that the node has answered before. What is asked again
// of a bridge that has started anew is worked on anew: rows that it had changed then are found to have changed, and looked at again.
func askSlowly(ctx context.Context, q apply.VerifyQuestion, met bool, send func(ctx context.Context, text []byte) ([]byte, error)) (*apply.VerifyAnswer, error) {
	q.ID = rand.Text()
	text, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	for heard := time.Now(); ; {
		short, cancel := context.WithTimeoutCause(ctx, verifyReach, errVerifySilent)
		out, err := send(short, text)
		if err != nil && short.Err() != nil {
			err = context.Cause(short)
		}
		cancel()
		patience := verifyReach
		if met {
			patience = verifyAway
		}
		switch {
		case err == nil:
			a := &apply.VerifyAnswer{}
			if err := json.Unmarshal(out, a); err != nil || !a.Working {
				return a, err
			}
			heard, met = time.Now(), true
			continue
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case time.Since(heard) >= patience:
			return nil, err
		}
		if err := rest(ctx, verifyAgain); err != nil {
			return nil, err
		}
	}
}
