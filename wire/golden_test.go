package wire

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "write frames of the present version that testdata lacks")

// TestFramesOfEachVersionAreRead: what stands in a stream when a node is upgraded, and what nodes go on writing that are upgraded later,
// is read as it was meant, and the present version is written as it always was. A file once written is never changed.
func TestFramesOfEachVersionAreRead(t *testing.T) {
	fence := &Frame{Header: exampleFrame().Header, Body: []byte{}}
	fence.Fence, fence.FirstSeq, fence.Standbys = true, 0, ""
	handedOn := exampleFrame()
	handedOn.Sender, handedOn.OriginWriter, handedOn.Hops = "b", 3, []string{"c"}
	handedOn.Body = AppendSchema(AppendLost(handedOn.Body, exampleLosses()), &Schema{Role: "r", SearchPath: "app", SQL: "ALTER TABLE t ADD COLUMN x int"})
	handedOn.Body, _ = AppendNote(handedOn.Body, AskPrefix, AppendAsk(nil, &Ask{ID: 9, Of: fence.Origin, Schema: "public", Table: "t", Key: []byte(`{"id":1}`)}))
	handedOn.Body, _ = AppendNote(handedOn.Body, AnswerPrefix, AppendAnswer(nil, Answer{To: fence.Origin, ID: 9}))
	handedOn.Body = AppendNumber(AppendNumber(handedOn.Body, KindSub, 791), KindSubAbort, 791) // as in a run
	large := exampleFrame()
	large.Body = AppendChunk(large.Body, 6, 0, bytes.Repeat([]byte("compressible "), 200))
	sealed := exampleFrame()
	sealed.Sealed, sealed.Body = true, newSealer(t, "a b", 1).Append(nil, SealedRelation, sealed.Body)
	signed := exampleFrame()
	newSigner(t, 1).sign(signed)
	again := sent(t, nil, signed)
	if err := again.GoOn(&Header{LastSeq: 7}); err != nil {
		t.Fatal(err)
	}
	again.Sender, again.OriginWriter, again.Hops = "b", 3, []string{"a"}
	for name, want := range map[string]*Frame{"v1_records": exampleFrame(), "v1_fence": fence, "v1_handed_on": handedOn, "v1_zstd": large, "v2_sealed": sealed,
		"v1_signed": signed, "v1_signed_again": again} {
		path := filepath.Join("testdata", name+".frame")
		written, err := (&Encoder{Zstd: name == "v1_zstd"}).Append(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) && *update {
			data, err = written, os.WriteFile(path, written, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if data[4] != name[1]-'0' || written[4] != data[4] {
			t.Errorf("%s is of version %d, and would be written as %d", path, data[4], written[4])
		}
		got, err := new(Decoder).Decode(data)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s means\n%+v\nand meant\n%+v", path, got, want)
		}
	}
}
