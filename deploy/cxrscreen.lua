function OnStoredInstance(instanceId, tags, metadata, origin)
   if tags['Modality'] == 'CR' or tags['Modality'] == 'DX' then
      local job = { Resources = { instanceId }, Asynchronous = true }
      RestApiPost('/modalities/cxrscreen/store', DumpJson(job))
   end
end
