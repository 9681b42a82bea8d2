// Chrome's echo canceller knows what calls play, not what Web Audio does (crbug.com/687574). It does
// cancel sound that went through a call within the page, which costs Opus coding and about 50 ms, so
// this is for speakers only.

// Plays the output of an audio node through two connected peers. Resolves to {audio, close}.
export async function playCancellable(node) {
  const { stream } = node.connect(node.context.createMediaStreamDestination());
  const near = new RTCPeerConnection();
  const far = new RTCPeerConnection();
  near.onicecandidate = ({ candidate }) => candidate && far.addIceCandidate(candidate);
  far.onicecandidate = ({ candidate }) => candidate && near.addIceCandidate(candidate);
  const heard = new Promise((done) => {
    far.ontrack = ({ streams }) => done(streams[0]);
  });
  for (const track of stream.getTracks()) near.addTrack(track, stream);
  await near.setLocalDescription();
  await far.setRemoteDescription(near.localDescription);
  await far.setLocalDescription();
  await near.setRemoteDescription(far.localDescription);
  const audio = new Audio();
  audio.srcObject = await heard;
  await audio.play();
  const close = () => {
    audio.srcObject = null;
    near.close();
    far.close();
  };
  return { audio, close };
}
