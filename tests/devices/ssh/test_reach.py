from devices import profiles, ssh
from devices.artifact import open_artifact


def test_an_artifact_goes_there_once(ready, decoder_folder):
    """What is put there verifies there; a second time nothing is sent."""
    profile = profiles.load(str(ready.profile_path))
    said = []
    place = ssh.put(profile, open_artifact(decoder_folder), said.append)
    assert open_artifact(place).sha256 == open_artifact(decoder_folder).sha256
