package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgbridge/pgbridge/apply"
)

// TestASlowAnswerIsWaitedForAndALostOneAskedFor: what a node asks another one, by what becomes of each message that it sends.
func TestASlowAnswerIsWaitedForAndALostOneAskedFor(t *testing.T) {
	for _, tt := range []struct {
		what   string
		takes  time.Duration // the answer
		met    bool          // the node has answered before
		fates  []string      // of the messages: "lost", "answer lost", "nobody"; empty: it arrives
		want   string        // after how long there is what, and how often it was worked on
		always string        // how all further messages fare
	}{
		{"at once", 0, false, nil, "0s: answer 1; worked 1", ""},
		{"slow", 40 * time.Second, false, nil, "40s: answer 1; worked 1", ""},
		{"too slow", 2 * time.Minute, false, nil, "1m0s: " + errVerifySlow.Error() + "; worked 1", ""},
		{"the question is lost", 0, true, []string{"lost", "lost"}, "10.2s: answer 1; worked 1", ""},
		{"the answer is lost", 0, true, []string{"answer lost"}, "5.1s: answer 1; worked 1", ""},
		{"one that is worked on is lost", 20 * time.Second, false, []string{"", "answer lost", "lost"}, "20s: answer 1; worked 1", ""},
		{"one that was long worked on is lost", 59 * time.Second, false, append(make([]string, 58), "lost"), "1m3.1s: answer 1; worked 1", ""},
		{"nobody is there yet", 0, false, []string{"nobody", "nobody"}, "200ms: answer 1; worked 1", ""},
		{"never", 0, false, nil, "5s: no answer comes; worked 0", "lost"},
		{"not any more", 0, true, nil, "1m1.1s: no answer comes; worked 0", "lost"},
		{"it goes away while it works", time.Hour, false, []string{""}, "1m2.1s: no answer comes; worked 1", "lost"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				worked := 0
				there := &slowAnswers{last: map[string]*slowAnswer{}, work: func(ctx context.Context, _ *apply.VerifyQuestion) []byte {
					worked++
					if err := rest(ctx, tt.takes); err != nil {
						return verifyText(&apply.VerifyAnswer{Error: err.Error()})
					}
					return verifyText(&apply.VerifyAnswer{Rows: worked})
				}}
				ctx, cancel := context.WithCancel(t.Context())
				sent := 0
				begun := time.Now()
				a, err := askSlowly(ctx, apply.VerifyQuestion{}, tt.met, func(short context.Context, text []byte) ([]byte, error) {
					fate := tt.always
					if sent < len(tt.fates) {
						fate = tt.fates[sent]
					}
					sent++
					switch fate {
					case "nobody":
						return nil, errors.New("nobody answers")
					case "answer lost":
						there.answer(ctx, "a", text)
						fallthrough
					case "lost":
						<-short.Done()
						return nil, short.Err()
					}
					return there.answer(ctx, "a", text), nil
				})
				got := ""
				switch {
				case err != nil:
					got = err.Error()
				case a.Error != "":
					got = a.Error
				default:
					got = fmt.Sprint("answer ", a.Rows)
				}
				if got = fmt.Sprintf("%s: %s; worked %d", time.Since(begun), got, worked); got != tt.want {
					t.Errorf("%s, want %s", got, tt.want)
				}
				cancel()
				there.all.Wait()
			})
		})
	}
}

// TestTheNextQuestionEndsTheLastOne: of one node; each is worked on, alike or not, and those of others go on beside it.
func TestTheNextQuestionEndsTheLastOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var ended []string // guarded by mu
		there := &slowAnswers{last: map[string]*slowAnswer{}, work: func(ctx context.Context, q *apply.VerifyQuestion) []byte {
			end := fmt.Sprint(q.Asker, " ", rest(ctx, 10*time.Second))
			mu.Lock()
			defer mu.Unlock()
			ended = append(ended, end)
			return verifyText(&apply.VerifyAnswer{})
		}}
		ask := func(ctx context.Context, asker string) {
			_, _ = askSlowly(ctx, apply.VerifyQuestion{}, false, func(ctx context.Context, text []byte) ([]byte, error) {
				return there.answer(t.Context(), asker, text), ctx.Err()
			})
		}
		short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		go ask(t.Context(), "b")
		ask(short, "a")
		ask(t.Context(), "a")
		ask(t.Context(), "a")
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(ended, []string{"a another question has come", "b <nil>", "a <nil>", "a <nil>"}) {
			t.Errorf("%q", ended)
		}
	})
}

// TestOvertakenQuestionEndsNothing: a question that its node has given up comes late, behind the next one, and that one is answered all the same.
func TestOvertakenQuestionEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := make(chan struct{}, 3)
		there := &slowAnswers{last: map[string]*slowAnswer{}, work: func(ctx context.Context, q *apply.VerifyQuestion) []byte {
			begun <- struct{}{}
			if err := rest(ctx, 2500*time.Millisecond); err != nil {
				return verifyText(&apply.VerifyAnswer{Error: err.Error()})
			}
			return verifyText(&apply.VerifyAnswer{Rows: 7})
		}}
		go func() {
			<-begun
			there.answer(t.Context(), "a", []byte(`{"id":"given up"}`))
		}()
		a, err := askSlowly(t.Context(), apply.VerifyQuestion{}, false, func(ctx context.Context, text []byte) ([]byte, error) {
			return there.answer(t.Context(), "a", text), ctx.Err()
		})
		if err != nil || a.Error != "" || a.Rows != 7 {
			t.Errorf("%+v, %v", a, err)
		}
		there.all.Wait()
	})
}
