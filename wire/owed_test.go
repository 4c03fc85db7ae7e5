package wire

import (
	"errors"
	"reflect"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

func TestAsksAndAnswers(t *testing.T) {
	ask := &Ask{ID: 7, Of: origin.Origin{Node: "a", Epoch: 2}, Schema: "public", Table: "t", Key: []byte(`{"id":1}`)}
	answer := Answer{ID: 7, To: origin.Origin{Node: "b", Epoch: 1}}
	content := map[string][]byte{AskPrefix: AppendAsk(nil, ask), AnswerPrefix: AppendAnswer(nil, answer)}
	if got, err := ParseAsk(content[AskPrefix]); err != nil || !reflect.DeepEqual(got, ask) {
		t.Errorf("%+v became %+v, %v", ask, got, err)
	}
	for _, answer := range []Answer{answer, {ID: 7, To: answer.To, Kept: true}} {
		if got, err := ParseAnswer(AppendAnswer(nil, answer)); err != nil || got != answer {
			t.Errorf("%+v became %+v, %v", answer, got, err)
		}
	}
	for prefix, b := range content {
		body, ok := AppendNote(nil, prefix, b)
		if !ok {
			t.Fatalf("%s is no note", prefix)
		}
		recs := NewRecords(body)
		rec, err := recs.Next()
		if want := map[string]Kind{AskPrefix: KindAsk, AnswerPrefix: KindAnswer}[prefix]; err != nil || rec.Kind != want || string(rec.Payload) != string(b) {
			t.Errorf("%s is the record %c, %v", prefix, rec.Kind, err)
		}
		for n := range b {
			if _, ok := AppendNote(nil, prefix, b[:n]); ok {
				t.Errorf("%s is taken with %d of %d bytes", prefix, n, len(b))
			}
		}
		if _, ok := AppendNote(nil, prefix, append(b, 0)); ok {
			t.Errorf("%s is taken with a byte more", prefix)
		}
	}
	if _, ok := AppendNote(nil, "any", content[AskPrefix]); ok {
		t.Error("any message is taken")
	}
	if _, err := ParseAsk(nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("nothing is read with %v", err)
	}
}
