package bpf

import "testing"

func TestTranslation(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("four", "127.0.0.2:0", tcp))
	f.service("10.96.0.1:53", udp, f.backend("four", "127.0.0.2:0", udp))
	f.service("[fd00:96::1]:80", tcp, f.backend("six", "[::1]:0", tcp))
	f.service("[fd00:96::1]:53", udp, f.backend("six", "[::1]:0", udp))

	tests := []struct {
		name, socket string
		steps        []string
		want         string
	}{
		{"tcp4", "4 tcp", []string{"connect 10.96.0.1:80", "peer", "recv"}, "ok; 10.96.0.1:80; four"},
		{"tcp6", "6 tcp", []string{"connect [fd00:96::1]:80", "peer", "recv"}, "ok; [fd00:96::1]:80; six"},
		{"tcp mapped", "6 tcp", []string{"connect 10.96.0.1:80", "peer", "recv"}, "ok; [::ffff:10.96.0.1]:80; four"},
		{"udp4 connected", "4 udp", []string{"connect 10.96.0.1:53", "peer", "send", "recv"}, "ok; 10.96.0.1:53; ok; four from 10.96.0.1:53"},
		{"udp6 connected", "6 udp", []string{"connect [fd00:96::1]:53", "peer", "send", "recv"}, "ok; [fd00:96::1]:53; ok; six from [fd00:96::1]:53"},
		{"udp mapped connected", "6 udp", []string{"connect 10.96.0.1:53", "peer", "send", "recv"}, "ok; [::ffff:10.96.0.1]:53; ok; four from [::ffff:10.96.0.1]:53"},
		{"udp4 unconnected", "4 udp", []string{"sendto 10.96.0.1:53", "recv"}, "ok; four from 10.96.0.1:53"},
		{"udp6 unconnected", "6 udp", []string{"sendto [fd00:96::1]:53", "recv"}, "ok; six from [fd00:96::1]:53"},
		{"udp mapped unconnected", "6 udp", []string{"sendto 10.96.0.1:53", "recv"}, "ok; four from [::ffff:10.96.0.1]:53"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.only(f.run(20, tt.socket, tt.steps...), tt.want)
		})
	}
}
